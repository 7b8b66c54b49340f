"""Writing and reading shards: plain POSIX tars of raw arrays, byte for byte reproducible.

Members of a sample, in order: KEY.blur.npy, KEY.sharp.npy (uint16 HWC RGB), KEY.radius.npy (uint16
HW, pixels x 256), KEY.json. Time, owner and mode are fixed, so the same input gives the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import tarfile
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import IO, Annotated, Any, cast

import imagecodecs
import numpy as np
from pydantic import Field

from pipeline.arrays import Image
from pipeline.border import BadInput, Number, parse_json, validated
from pipeline.data.entries import SampleEntry
from pipeline.data.manifest import Shard
from pipeline.errors import DamagedError

BLUR, SHARP, RADIUS, META = "blur.npy", "sharp.npy", "radius.npy", "json"
HEADER = 256  # bytes; an array's header ends within them


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
        stream = cast(IO[bytes], self._file)
        self._tar = tarfile.TarFile(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT)

    def add(self, sample: Sample) -> None:
        """Append a sample."""
        images = {BLUR: sample.blur, SHARP: sample.sharp, RADIUS: sample.radius}
        parts = {name: _npy(image) for name, image in images.items() if image is not None}
        parts[META] = [memoryview(json.dumps(sample.meta, sort_keys=True).encode())]
        places = {name: self._put(f"{sample.key}.{name}", parts[name]) for name in parts}
        crcs = {name: reduce(_crc32, parts[name], 0) for name in parts}
        height, width = sample.blur.shape[:2]
        self.samples.append(SampleEntry(sample.key, height, width, places, crcs))

    def close(self) -> Shard:
        """Finish the file and describe it."""
        self._tar.close()
        self._file.close()
        return Shard(self.path.name, self._file.size, self._file.hash.hexdigest(), self.samples)

    def _put(self, name: str, parts: list[memoryview]) -> tuple[int, int]:
        """Append a member of these bytes; returns its offset and its length."""
        info = tarfile.TarInfo(name)  # its defaults: mtime 0, uid 0, mode 0644
        info.size = sum(map(len, parts))
        self._tar.addfile(info)  # the header alone
        start, padding = self._tar.offset, -info.size % tarfile.BLOCKSIZE
        for part in parts:
            self._file.write(part)
        self._file.write(bytes(padding))
        self._tar.offset += info.size + padding
        return start, info.size


def view_member(shard: Image, entry: SampleEntry, member: str, where: str) -> Image:
    """An array of a memory-mapped shard (bytes), without a copy.

    Raises:
        DamagedError: if the member is not the array that the manifest promises.
    """
    offset, length = entry.members[member]
    raw = shard[offset : offset + length]
    start = array_start(raw[:HEADER].tobytes(), entry, member)
    if start is None or len(raw) != length:
        raise damaged_member(where, entry, member)
    return raw[start:].view("<u2").reshape(_shape(entry, member))


def array_start(head: bytes, entry: SampleEntry, member: str) -> int | None:
    """Where an array's values begin in a member; None if it is not the array promised.

    Type, byte order, memory order and shape must be those that `ShardWriter` writes, and the
    member's length must follow from them: otherwise the values would be read scrambled.

    Args:
        head: the first `HEADER` bytes of the member.
    """
    start = 10 + int.from_bytes(head[8:10], "little")
    shape = _shape(entry, member)
    described = f"{{'descr': '<u2', 'fortran_order': False, 'shape': {shape}, }}".encode()
    sound = (
        head[:8] == b"\x93NUMPY\x01\x00"
        and start <= len(head)
        and head[10:start].rstrip(b" \n") == described
        and entry.members[member][1] == start + 2 * math.prod(shape)
    )
    return start if sound else None


def _shape(entry: SampleEntry, member: str) -> tuple[int, ...]:
    return (entry.height, entry.width) if member == RADIUS else (entry.height, entry.width, 3)


def read_meta(shard: Image, entry: SampleEntry, where: str) -> dict[str, Any]:
    """The content of a sample's KEY.json.

    Raises:
        DamagedError: if it is not what `era preprocess` writes.
    """
    offset, length = entry.members[META]
    try:
        value: dict[str, Any] = parse_json(shard[offset : offset + length].tobytes(), META)
        rows = validated(_Meta, value, META).sharpness
    except BadInput:
        raise damaged_member(where, entry, META) from None
    if len({len(row) for row in rows}) > 1:
        raise damaged_member(where, entry, META)
    return value


def changed_members(shard: Image, entry: SampleEntry) -> list[str]:
    """The members of a sample whose bytes are not those written; none where no crc32 is known."""
    return [
        member
        for member, (offset, length) in entry.members.items()
        if member in entry.crc32
        and _crc32(0, shard[offset : offset + length].data) != entry.crc32[member]
    ]


def damaged_member(where: str, entry: SampleEntry, member: str) -> DamagedError:
    """What to raise for a member that is not what was written; `where` is its shard's URL."""
    return DamagedError(f"{damage(where, entry, member)}; run `era verify`, then preprocess again")


def damage(where: str, entry: SampleEntry, member: str) -> str:
    """Names a member that is not what was written, and what was expected there."""
    expected = (
        "a description with a rectangular sharpness map"
        if member == META
        else f"uint16, little-endian, in C order, shape {_shape(entry, member)}"
    )
    return f"{where}: sample {entry.key}: {member} is damaged (expected {expected})"


@dataclass(frozen=True)
class _Meta:
    """The part of KEY.json that is used."""

    sharpness: list[Annotated[list[Number], Field(min_length=1)]] = field(default_factory=list)


class _Hashed:
    """An append-only file that keeps track of its size and sha256."""

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


def _npy(array: Image) -> list[memoryview]:
    """The bytes of an .npy file: its header, and the array's own memory."""
    head = io.BytesIO()
    plain = np.ascontiguousarray(array, "<u2")
    description = np.lib.format.header_data_from_array_1_0(plain)
    np.lib.format.write_array_header_1_0(head, description)
    return [head.getbuffer(), plain.reshape(-1).data.cast("B")]


def _crc32(so_far: int, data: memoryview) -> int:
    """The same as zlib's crc32, several times as fast."""
    return int(imagecodecs.deflate_crc32(data, so_far))  # type: ignore[arg-type]
