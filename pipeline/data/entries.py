"""The samples of a shard as a manifest lists them: one by one, or as rows of a table.

A manifest of a million samples is a table of numbers. As objects they would take 2 GB in every
process that opens it, and half a minute to make.
"""

from __future__ import annotations

import itertools
import re
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, overload

import numpy as np
from pydantic import Field, StringConstraints

from pipeline.border import Count, Crc32

Member = Annotated[str, StringConstraints(pattern=r"^((blur|sharp|radius)[.]npy|json)$")]
MAX_SIDE, LONGEST_KEY = 1 << 20, 200
Side = Annotated[int, Field(strict=True, ge=1, le=MAX_SIDE)]  # pixels
Key = Annotated[
    str, StringConstraints(min_length=1, max_length=LONGEST_KEY, pattern=r"^[^./\\\x00-\x20\x7f]+$")
]
MEMBERS = ("blur.npy", "sharp.npy", "radius.npy", "json")  # in the order of a shard
NONE = -1  # in a table: there is no such member, or no crc32 of it


@dataclass(frozen=True)
class SampleEntry:
    """A sample: its key, its size in pixels, (offset, bytes) of each member, and its crc32."""

    key: Key
    height: Side
    width: Side
    members: dict[Member, tuple[Count, Count]]
    crc32: dict[Member, Crc32] = field(default_factory=dict)


class Entries(Sequence[SampleEntry]):
    """Rows of a table as a sequence of samples, each made when it is asked for.

    Args:
        keys: of the whole table.
        table: (n, 14) int64: height, width, offset and bytes of each of `MEMBERS`, their crc32.
        rows: those that are meant.
    """

    def __init__(self, keys: list[str], table: np.ndarray[Any, Any], rows: range) -> None:
        self._keys, self._table, self._rows = keys, table, rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> SampleEntry: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[SampleEntry]: ...
    def __getitem__(self, index: int | slice) -> SampleEntry | Sequence[SampleEntry]:
        """One sample, or a part of the sequence."""
        if isinstance(index, slice):
            return Entries(self._keys, self._table, self._rows[index])
        row = self._rows[index]
        height, width, *rest = self._table[row].tolist()
        named = list(enumerate(MEMBERS))
        places = {m: (rest[2 * i], rest[2 * i + 1]) for i, m in named if rest[2 * i] != NONE}
        crcs = {m: rest[8 + i] for i, m in named if rest[8 + i] != NONE}
        return SampleEntry(self._keys[row], height, width, places, crcs)

    @property
    def sizes(self) -> np.ndarray[Any, Any]:
        """(n, 2): height and width."""
        return self._table[self._rows.start : self._rows.stop, :2]

    @property
    def have_sharp(self) -> bool:
        """Whether every sample has its sharp image."""
        return bool((self._table[self._rows.start : self._rows.stop, 4] != NONE).all())

    def __reduce__(self) -> tuple[type[list[SampleEntry]], tuple[list[SampleEntry]]]:
        """Pickle these samples alone, not the whole table."""
        return list, (list(self),)


def sizes_of(samples: Sequence[SampleEntry]) -> Iterator[tuple[int, int]]:
    """(height, width) of each sample."""
    if isinstance(samples, Entries):
        return map(tuple, samples.sizes.tolist())
    return ((entry.height, entry.width) for entry in samples)


@dataclass(frozen=True)
class ReadShard:
    """What a manifest says of a shard."""

    name: str
    bytes: int
    sha256: str
    samples: Entries


def read_shards(data: bytes, at: int) -> tuple[list[ReadShard], int]:
    """The shards that begin at a place in a manifest's text, and the place where they end.

    Only the layout in which manifests are written is read, and only what is sound. There are no
    shards in any other text, which a general parser may read, or refuse with the reason.
    """
    heads: list[re.Match[bytes]] = []
    keys: list[str] = []
    numbers, ends = array("q"), [0]
    following = b","
    while following:
        if not (found := _HEAD.match(data, at)):
            return [], 0
        heads.append(found)
        following = b","
        while following:
            if not (found := _SAMPLE.match(data, found.end())):
                return [], 0
            key, *values, following = found.groups(b"-1")
            keys.append(key.decode())
            numbers.extend(map(int, values))
        if not (found := _FOOT.match(data, found.end())):
            return [], 0
        at, following = found.end(), found[1]
        ends.append(len(keys))
    table = np.frombuffer(numbers, np.int64).reshape(len(keys), -1)
    shards = [
        ReadShard(h[1].decode(), int(h[2]), h[3].decode(), Entries(keys, table, range(*rows)))
        for h, rows in zip(heads, itertools.pairwise(ends), strict=True)
    ]
    return (shards, at) if _are_sound(shards, keys, table) else ([], 0)


def _are_sound(shards: list[ReadShard], keys: list[str], table: np.ndarray[Any, Any]) -> bool:
    sizes = np.repeat([s.bytes for s in shards], [len(s.samples) for s in shards])
    return bool(
        len({shard.name for shard in shards}) == len(shards)
        and len(set(keys)) == len(keys)
        and max(map(len, keys)) <= LONGEST_KEY
        and (table[:, :2] >= 1).all()
        and (table[:, :2] <= MAX_SIDE).all()
        and (table[:, 2:10:2] + table[:, 3:10:2] <= sizes[:, None]).all()
        and (table[:, 10:] < 1 << 32).all()
    )


def _sample_pattern() -> bytes:
    number = r"(0|[1-9][0-9]{0,17})"
    places, crcs = [], []
    for name in MEMBERS:
        quoted = re.escape(f'"{name}"')
        places.append(rf"{quoted}: \[\n       {number},\n       {number}\n      \]")
        crcs.append(rf"{quoted}: {number}")
    return (
        r'    \{\n     "key": "([^"./\\\x00-\x20\x7f-\xff]+)",\n'
        rf'     "height": {number},\n     "width": {number},\n'
        rf'     "members": \{{\n{_listed(places)}\n     \}}'
        rf'(?:,\n     "crc32": \{{\n{_listed(crcs)}\n     \}})?'
        r"\n    \}(,?)\n"
    ).encode("latin-1")


def _listed(parts: list[str]) -> str:
    """Members as JSON lists them, of which those in the middle may be missing."""
    first, *middle, last = parts
    optional = "".join(f"(?:      {part},\n)?" for part in middle)
    return f"      {first},\n{optional}      {last}"


_SAMPLE = re.compile(_sample_pattern())
_HEAD = re.compile(
    rb'  \{\n   "name": "([A-Za-z0-9_-][A-Za-z0-9_.-]{0,199})",\n   "bytes": ([1-9][0-9]{0,17}),\n'
    rb'   "sha256": "([0-9a-f]{64})",\n   "samples": \[\n'
)
_FOOT = re.compile(rb"   \]\n  \}(,?)\n")
