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
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

from pipeline import storage
from pipeline.errors import DamagedError, UserError

FORMAT = "era-shards/1"
NAME = "manifest.json"
T = TypeVar("T")


@dataclass(frozen=True)
class SampleEntry:
    """A sample: its key, its size in pixels, (offset, bytes) of each member, and its crc32."""

    key: str
    height: int
    width: int
    members: dict[str, tuple[int, int]]
    crc32: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Shard:
    """A tar file of the split and the samples in it."""

    name: str
    bytes: int
    sha256: str
    samples: list[SampleEntry]


@dataclass(frozen=True)
class Manifest:
    """A split's table of contents."""

    dataset: str
    split: str
    bit_depth: int
    sharp: bool
    radius: bool
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


def parse_manifest(text: str, url: str) -> Manifest:
    """Read a manifest's text.

    Raises:
        UserError: if it is damaged or of another format.
    """
    try:
        values = json.loads(text)
        if values.pop("format") != FORMAT:
            raise ValueError(f"not of format {FORMAT}")
        counts = values.pop("samples"), values.pop("bytes")
        shards = [parse_shard(shard) for shard in values.pop("shards")]
        manifest = Manifest(
            dataset=_of(str, values, "dataset"),
            split=_of(str, values, "split"),
            bit_depth=_of(int, values, "bit_depth"),
            sharp=_of(bool, values, "sharp"),
            radius=_of(bool, values, "radius"),
            shards=shards,
            statistics=_of(dict, values, "statistics"),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{url}: not a manifest that can be read ({error})") from None
    if counts != (manifest.samples, manifest.bytes):
        raise DamagedError(f"{url}: damaged: its counts do not match its shards")
    return manifest


def load_manifest(split_url: str) -> tuple[Manifest, str]:
    """Load a split's manifest; returns it and the sha256 of its text.

    Raises:
        UserError: if there is none.
    """
    url = storage.join(split_url, NAME)
    if not storage.exists(url):
        raise UserError(f"{split_url}: no {NAME} there; make it with `era preprocess`")
    text = storage.read_text(url)
    return parse_manifest(text, url), hashlib.sha256(text.encode()).hexdigest()


def parse_shard(values: dict[str, Any]) -> Shard:
    """A shard from its plain values, as `asdict` made them."""
    samples = [
        SampleEntry(
            _of(str, s, "key"),
            _of(int, s, "height"),
            _of(int, s, "width"),
            {k: _span(v) for k, v in _of(dict, s, "members").items()},
            {k: int(v) for k, v in s.get("crc32", {}).items()},
        )
        for s in _of(list, values, "samples")
    ]
    return Shard(
        _of(str, values, "name"), _of(int, values, "bytes"), _of(str, values, "sha256"), samples
    )


def _of(kind: type[T], values: dict[str, Any], name: str) -> T:
    """A field of exactly this type; true is no number."""
    value = values[name]
    if type(value) is not kind:
        raise TypeError(f"{name} is {value!r}, not of type {kind.__name__}")
    return value


def _span(value: Any) -> tuple[int, int]:
    offset, length = value
    if type(offset) is not int or type(length) is not int:
        raise TypeError(f"{value!r} is no place of a member")
    return offset, length
