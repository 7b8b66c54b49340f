"""Writing and reading shards: plain POSIX tars of raw arrays, byte for byte reproducible.

Members of a sample, in order: KEY.blur.npy, KEY.sharp.npy (uint16 HWC RGB), KEY.radius.npy (uint16
HW, pixels x 256), KEY.json. Time, owner and mode are fixed, so the same input gives the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.manifest import SampleEntry, Shard
from pipeline.errors import UserError

Image = np.ndarray[Any, Any]
BLUR, SHARP, RADIUS, META = "blur.npy", "sharp.npy", "radius.npy", "json"


@dataclass(frozen=True)
class Sample:
    """A sample in memory: uint16 (H, W, 3); radius uint16 (H, W), pixels x 256."""

    key: str
    blur: Image
    sharp: Image | None = None
    radius: Image | None = None
    meta: dict[str, Any] = field(default_factory=dict)


class ShardWriter:
    """Writes one shard to a local file.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.samples: list[SampleEntry] = []
        self._tar = tarfile.open(path, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115  closed by close

    def add(self, sample: Sample) -> None:
        """Append a sample."""
        members = {BLUR: sample.blur, SHARP: sample.sharp, RADIUS: sample.radius}
        places = {n: self._put(sample.key, n, _npy(a)) for n, a in members.items() if a is not None}
        meta = json.dumps(sample.meta, sort_keys=True).encode()
        places[META] = self._put(sample.key, META, meta)
        height, width = sample.blur.shape[:2]
        self.samples.append(SampleEntry(sample.key, height, width, places))

    def close(self) -> Shard:
        """Finish the file and describe it."""
        self._tar.close()
        with self.path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return Shard(self.path.name, self.path.stat().st_size, digest, self.samples)

    def _put(self, key: str, member: str, data: bytes) -> tuple[int, int]:
        info = tarfile.TarInfo(f"{key}.{member}")  # its defaults: mtime 0, uid 0, mode 0644
        info.size = len(data)
        self._tar.addfile(info, io.BytesIO(data))
        blocks = -(-len(data) // tarfile.BLOCKSIZE)
        return self._tar.offset - blocks * tarfile.BLOCKSIZE, len(data)


def view_member(shard: Image, entry: SampleEntry, member: str, where: str) -> Image:
    """An array of a memory-mapped shard (bytes), without a copy.

    Raises:
        UserError: if what lies there is not the array that the manifest promises.
    """
    offset, length = entry.members[member]
    channels = () if member == RADIUS else (3,)
    shape = (entry.height, entry.width, *channels)
    raw = shard[offset : offset + length]
    header = 10 + int.from_bytes(raw[8:10].tobytes(), "little") if len(raw) >= 10 else 0
    whole = length - header == 2 * int(np.prod(shape)) and len(raw) == length
    if raw[:6].tobytes() != b"\x93NUMPY" or not whole or b"'<u2'" not in raw[10:header].tobytes():
        raise UserError(
            f"{where}: sample {entry.key}: {member} is damaged; run `era verify`, then "
            "preprocess again"
        )
    return raw[header:].view("<u2").reshape(shape)


def _npy(array: Image) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.ascontiguousarray(array, "<u2"), allow_pickle=False)
    return stream.getvalue()
