"""Image file directories: the tags of TIFF files and of EXIF blocks, copied byte for byte.

A tag's value stays as the bytes of the file; only what points to another directory (EXIF, GPS,
interoperability) is followed. Offsets within a maker's note are not known to anyone but the maker.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
SIZES |= {16: 8, 17: 8, 18: 8}  # BigTIFF's
EXIF, GPS, INTEROPERABILITY = 34665, 34853, 40965
ORIENTATION = 274
POINTERS = (EXIF, GPS, INTEROPERABILITY)
INTEGERS = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
MOST_ENTRIES = 4096


@dataclass(frozen=True)
class Tag:
    """A tag: its type and count as in the file, its value in the file's byte order."""

    kind: int
    count: int
    value: bytes | dict[int, Tag]


Directory = dict[int, Tag]


@dataclass(frozen=True)
class Form:
    """How a file writes its numbers: byte order "<" or ">", classic TIFF or BigTIFF."""

    order: str
    big: bool

    @property
    def offset(self) -> str:
        """struct's format of an offset."""
        return self.order + ("Q" if self.big else "I")

    @property
    def inline(self) -> int:
        """Bytes of a value that needs no place of its own."""
        return 8 if self.big else 4


def form_of(data: bytes) -> Form:
    """Raises ValueError for bytes that are no TIFF."""
    order = {b"II": "<", b"MM": ">"}.get(bytes(data[:2]))
    magic = struct.unpack_from(f"{order}H", data, 2)[0] if order and len(data) >= 8 else 0
    if magic not in (42, 43):
        raise ValueError("no TIFF header")
    return Form(str(order), magic == 43)


def first_directory(data: bytes) -> Directory:
    """The first directory of a TIFF file or of an EXIF block.

    Raises:
        ValueError, struct.error: if it is damaged.
    """
    form = form_of(data)
    return read_directory(data, form, struct.unpack_from(form.offset, data, form.inline)[0])


def read_directory(data: bytes | memoryview, form: Form, place: int) -> Directory:
    """The directory at an offset; damaged directories that it points to are left out.

    Raises:
        ValueError, struct.error: if it is damaged.
    """
    return _read(data, form, place, 0, [len(data)])


def _read(
    data: bytes | memoryview, form: Form, place: int, depth: int, left: list[int]
) -> Directory:
    """The same, `depth` pointers down; `left`: bytes that values may still take, all together."""
    counter, entry = form.order + ("Q" if form.big else "H"), form.order + "HH" + form.offset[1]
    (entries,) = struct.unpack_from(counter, data, place)
    if entries > MOST_ENTRIES:
        raise ValueError(f"a directory of {entries} tags")
    place += struct.calcsize(counter)
    found: Directory = {}
    followed = set()  # each pointer once, or a circle would take years
    for _ in range(entries):
        code, kind, count = struct.unpack_from(entry, data, place)
        at = place + struct.calcsize(entry)
        place = at + form.inline
        size = SIZES.get(kind, 0) * count
        (target,) = struct.unpack_from(form.offset, data, at)
        if code in POINTERS:
            if depth < 2 and code not in followed:
                followed.add(code)
                before = left[0]
                try:
                    found[code] = Tag(kind, 1, _read(data, form, target, depth + 1, left))
                except (ValueError, struct.error):
                    left[0] = before  # what is left out takes nothing
            continue
        start = at if size <= form.inline else target
        if size and start + size <= len(data):
            left[0] -= size
            if left[0] < 0:
                raise ValueError("tags that overlap")
            found[code] = Tag(kind, count, bytes(data[start : start + size]))
    return found


def append_directory(out: bytearray, form: Form, directory: Directory, base: int = 0) -> int:
    """Append a directory and its values to a file's end, which begins at `base`; returns its offset
    in the file."""
    rows = []
    for code, tag in sorted(directory.items()):
        kind, value = tag.kind, tag.value
        if isinstance(value, dict):
            kind = 16 if form.big else 4
            value = struct.pack(form.offset, append_directory(out, form, value, base))
        elif len(value) > form.inline:
            out += bytes(len(out) % 2)
            place = base + len(out)
            out += value
            value = struct.pack(form.offset, place)
        head = struct.pack(form.order + "HH" + form.offset[1], code, kind, tag.count)
        rows.append(head + value.ljust(form.inline, b"\0"))
    out += bytes(-len(out) % 8)
    place = base + len(out)
    out += struct.pack(form.order + ("Q" if form.big else "H"), len(rows))
    out += b"".join(rows) + bytes(form.inline)
    return place


def integers(tag: Tag | None, form: Form) -> tuple[int, ...]:
    """A tag's whole numbers; empty where it is missing or of another type."""
    if tag is None or isinstance(tag.value, dict) or tag.kind not in INTEGERS:
        return ()
    return struct.unpack(f"{form.order}{tag.count}{INTEGERS[tag.kind]}", tag.value)


@dataclass(frozen=True)
class Exif:
    """What a decoder has to know of an EXIF block."""

    orientation: int = 1
    adobe_rgb: bool = False


def read_exif(block: bytes) -> Exif:
    """Read an EXIF block, with or without its "Exif" header; a damaged one says nothing."""
    block = block.removeprefix(b"Exif\0\0")
    try:
        directory = first_directory(block)
        (orientation,) = integers(directory.get(ORIENTATION), form_of(block)) or (1,)
        interoperability: Any = _below(_below(directory, EXIF), INTEROPERABILITY).get(1)
    except (ValueError, struct.error):
        return Exif()
    adobe = interoperability is not None and bytes(interoperability.value)[:3] == b"R03"
    return Exif(orientation if 1 <= orientation <= 8 else 1, adobe)


def with_orientation(block: bytes, orientation: int) -> bytes:
    """An EXIF block (without its "Exif" header) whose orientation, if it says one, is another."""
    out = bytearray(block)
    try:
        form = form_of(block)
        (place,) = struct.unpack_from(form.order + "I", block, 4)
        (entries,) = struct.unpack_from(form.order + "H", block, place)
        for at in range(place + 2, place + 2 + 12 * entries, 12):
            if struct.unpack_from(form.order + "H", block, at)[0] == ORIENTATION:
                struct.pack_into(form.order + "HIHH", out, at + 2, 3, 1, orientation, 0)
    except (ValueError, struct.error):
        pass
    return bytes(out)


def _below(directory: Directory, code: int) -> Directory:
    tag = directory.get(code)
    return tag.value if tag is not None and isinstance(tag.value, dict) else {}
