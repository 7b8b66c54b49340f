"""`manifest.json`: a split's table of contents, written last.

    {"format": "era-shards/1", "dataset": ..., "split": ..., "samples": n, "bytes": n,
     "bit_depth": 16, "sharp": true, "radius": false,
     "shards": [{"name": ..., "bytes": n, "sha256": ...,
                 "samples": [{"key": ..., "height": h, "width": w,
                              "members": {"blur.npy": [offset, length], ...},
                 "crc32": {"blur.npy": n, ...}}]}]}

Offsets are of a member's data in its shard, so that any crop can be read at random. The shard's
sha256 shows damage, the members' crc32 name the samples that have it (older manifests lack them).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from pipeline import storage
from pipeline.border import Bool, FileName, Sha256, Text, parse_json, validated
from pipeline.data.entries import Entries, SampleEntry, read_shards
from pipeline.errors import DamagedError, UserError

FORMAT = "era-shards/1"
NAME = "manifest.json"
MAX_BYTES = 512 << 20  # some 1.3 million samples
Size = Annotated[int, Field(strict=True, ge=1, lt=1 << 62)]  # bytes
if TYPE_CHECKING:
    Samples = Sequence[SampleEntry]
else:
    Samples = list[SampleEntry]  # what a general parser makes of JSON; `Entries` are not validated
_SHARDS = b'\n "shards": ['


@dataclass(frozen=True)
class Shard:
    """A tar file of the split and the samples in it."""

    name: FileName
    bytes: Size
    sha256: Sha256
    samples: Samples


@dataclass(frozen=True)
class Manifest:
    """A split's table of contents."""

    dataset: Text
    split: Text
    bit_depth: Literal[8, 16]
    sharp: Bool
    radius: Bool
    shards: list[Shard]
    statistics: dict[str, Any] = field(default_factory=dict)

    @property
    def samples(self) -> int:
        """Samples of all shards."""
        return sum(len(shard.samples) for shard in self.shards)

    @property
    def bytes(self) -> int:
        """Bytes of all shards."""
        return sum(shard.bytes for shard in self.shards)

    def to_json(self) -> str:
        """The file's text, the same for the same content."""
        head = {"format": FORMAT, "samples": self.samples, "bytes": self.bytes}
        return json.dumps({**head, **asdict(self)}, indent=1) + "\n"


def parse_manifest(data: bytes, url: str) -> Manifest:
    """Read a manifest.

    Raises:
        UserError: if it is damaged, of another format, or names what no manifest may name.
    """
    what = f"{url}: not a manifest that can be read"
    rest, shards = _divided(data)
    values = parse_json(rest, what, MAX_BYTES)
    if not isinstance(values, dict):
        raise DamagedError(f"{what}: expected a table of names and values")
    if values.get("format") != FORMAT:
        raise UserError(f"{what}: not of format {FORMAT}")
    manifest = validated(Manifest, values, what)
    if shards:
        manifest = replace(manifest, shards=shards)
    for problem in _inconsistent(manifest):
        raise DamagedError(f"{what}: {problem}")
    if [values.get("samples"), values.get("bytes")] != [manifest.samples, manifest.bytes]:
        raise DamagedError(f"{url}: damaged: its counts do not match its shards")
    return manifest


def _divided(data: bytes) -> tuple[bytes, list[Shard]]:
    """The text without its shards, and these; all of it and none where it needs a general parser.

    The usual layout is read four times as fast, and its samples take a tenth of the memory.
    """
    head, found, _ = data[: 1 << 16].partition(_SHARDS)
    if not found or head.count(b"{") != 1 or len(data) > MAX_BYTES:
        return data, []
    start = len(head) + len(_SHARDS)
    read, end = read_shards(data, start + 1)
    if not read or data[end : end + 2] != b" ]":
        return data, []
    shards = [Shard(one.name, one.bytes, one.sha256, one.samples) for one in read]
    return data[:start] + data[end + 1 :], shards


def _inconsistent(manifest: Manifest) -> Iterator[str]:
    """What only the manifest as a whole shows."""
    names: set[str] = set()
    keys: set[str] = set()
    required = {"blur.npy", "json"} | ({"sharp.npy"} if manifest.sharp else set())
    for shard in manifest.shards:
        if isinstance(shard.samples, Entries) and (shard.samples.have_sharp or not manifest.sharp):
            continue  # the rest was checked as it was read
        if shard.name in names:
            yield f"the shard {shard.name} is there twice"
        names.add(shard.name)
        for entry in shard.samples:
            where = f"{shard.name}: sample {entry.key}"
            if entry.key in keys:
                yield f"{where} is there twice"
            keys.add(entry.key)
            if any(offset + length > shard.bytes for offset, length in entry.members.values()):
                yield f"{where} lies outside its shard"
            if not entry.members.keys() >= required:
                yield f"{where} lacks {', '.join(sorted(required - entry.members.keys()))}"


def read_manifest(url: str) -> tuple[bytes, str] | None:
    """A manifest's text and its sha256; None if it is missing."""
    if not storage.exists(url):
        return None
    data = storage.read_bytes(url, most=MAX_BYTES)
    return data, hashlib.sha256(data).hexdigest()


def load_manifest(
    split_url: str, read: Callable[[str], tuple[bytes, str] | None] = read_manifest
) -> tuple[Manifest, str]:
    """Load a split's manifest; returns it and the sha256 of its text.

    Args:
        read: `read_manifest`, or `SharedManifests.read`.

    Raises:
        UserError: if there is none.
    """
    url = storage.join(split_url, NAME)
    found = read(url)
    if found is None:
        raise UserError(f"{split_url}: no {NAME} there; make it with `era preprocess`")
    return parse_manifest(found[0], url), found[1]


def parse_shard(values: Any, where: str) -> Shard:
    """A shard from its plain values, as `asdict` made them.

    Raises:
        UserError: naming `where` if they are not a shard's.
    """
    return validated(Shard, values, where)
