"""Writing and reading shards: plain POSIX tars of raw arrays, byte for byte reproducible.

Members of a sample, in order: KEY.blur.npy, KEY.sharp.npy (uint16 HWC RGB), KEY.radius.npy (uint16
HW, pixels x 256), KEY.json. Time, owner and mode are fixed, so the same input gives the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from pipeline.data.manifest import SampleEntry, Shard
from pipeline.errors import UserError

Image = np.ndarray[Any, Any]
COPY_PART = 8 << 20  # bytes
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
    """Writes one shard to a local file, hashing it as it goes.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.samples: list[SampleEntry] = []
        self._file = _Hashed(path)
        self._tar = tarfile.TarFile(
            fileobj=cast(IO[bytes], self._file),
            mode="w",
            format=tarfile.USTAR_FORMAT,
            copybufsize=COPY_PART,
        )

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
        self._file.close()
        return Shard(self.path.name, self._file.size, self._file.hash.hexdigest(), self.samples)

    def _put(self, key: str, member: str, data: bytes | bytearray) -> tuple[int, int]:
        info = tarfile.TarInfo(f"{key}.{member}")  # its defaults: mtime 0, uid 0, mode 0644
        info.size = len(data)
        self._tar.addfile(info, cast(IO[bytes], _Slices(data)))
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


class _Slices:
    """Reads bytes piece by piece without a copy."""

    def __init__(self, data: bytes | bytearray) -> None:
        self.rest = memoryview(data)

    def read(self, count: int) -> memoryview:
        piece, self.rest = self.rest[:count], self.rest[count:]
        return piece


class _Hashed:
    """A file that is only appended to, its size and sha256 at hand."""

    def __init__(self, path: Path) -> None:
        self.stream = path.open("wb")
        self.hash = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes | memoryview) -> int:
        self.hash.update(data)
        self.size += len(data)
        return self.stream.write(data)

    def tell(self) -> int:
        return self.size

    def close(self) -> None:
        self.stream.flush()
        os.fsync(self.stream.fileno())
        self.stream.close()


def _npy(array: Image) -> bytearray:
    head = io.BytesIO()
    plain = np.ascontiguousarray(array, "<u2")
    description = np.lib.format.header_data_from_array_1_0(plain)
    np.lib.format.write_array_header_1_0(head, description)
    start = head.getbuffer().nbytes
    data = bytearray(start + plain.nbytes)
    data[:start] = head.getvalue()
    np.frombuffer(data, "<u2", offset=start)[:] = plain.ravel()
    return data
