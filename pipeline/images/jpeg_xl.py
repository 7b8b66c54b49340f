"""JPEG XL: what its decoders do not tell of a file (ISO/IEC 18181-1, annex D; 18181-2, 9)."""

from __future__ import annotations

import struct
from dataclasses import dataclass

METADATA = ("Exif", "xml ")
MOST_METADATA = 1 << 25  # bytes that a box is unpacked to, at most
Choices = tuple[tuple[int, int], ...]
SIZES: Choices = ((1, 9), (1, 13), (1, 18), (1, 30))
PREVIEWS: Choices = ((1, 6), (65, 8), (321, 10), (1345, 12))
EIGHTHS: Choices = ((16, 0), (32, 0), (1, 5), (33, 9))
ANIMATION: tuple[Choices, ...] = (
    ((100, 0), (1000, 0), (1, 10), (1, 30)),
    ((1, 0), (1001, 0), (1, 8), (1, 10)),
    ((0, 0), (0, 3), (0, 16), (0, 32)),
)
RATIOS = ((1, 1), (6, 5), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))  # width to height
DEPTHS: Choices = ((8, 0), (10, 0), (12, 0), (1, 6))


@dataclass(frozen=True)
class Header:
    """Of the codestream: size before it is turned; bits per channel, 0 for floating point."""

    height: int
    width: int
    bits: int = 8
    animated: bool = False


def boxes(data: bytes) -> dict[str, bytes]:
    """The first box of each type of a container; metadata packed by Brotli is unpacked."""
    import imagecodecs

    found: dict[str, bytes] = {}
    parts: list[bytes] = []
    place = 0 if data[4:8] == b"JXL " else len(data)
    while place + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, place)
        head = 16 if size == 1 else 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, place + 8)
        end = place + max(size, head) if size else len(data)
        body = data[place + head : end]
        packed = body[:4].decode("latin-1")
        if kind == b"brob" and packed in METADATA and packed not in found:
            kind, body = body[:4], bytes(imagecodecs.brotli_decode(body[4:], out=MOST_METADATA))
        if kind == b"jxlp":  # behind its number
            parts.append(body[4:])
        else:
            found.setdefault(kind.decode("latin-1"), body)
        place = end
    return {"jxlc": b"".join(parts), **found} if parts else found


def read_header(data: bytes) -> Header:
    """The header of a file's codestream.

    Raises:
        ValueError: if it is damaged.
    """
    stream = data if data[:2] == b"\xff\x0a" else boxes(data).get("jxlc", b"")
    bits = _Bits(stream[2:66])
    size = bits.size(SIZES, ((1, 5),))
    if bits.take(1):  # all values are the usual ones
        return Header(*size)
    animated = False
    if bits.take(1):
        bits.take(3)  # orientation
        if bits.take(1):
            bits.size(SIZES, ((1, 5),))
        if bits.take(1):
            bits.size(PREVIEWS, EIGHTHS)
        if animated := bool(bits.take(1)):
            for choices in ANIMATION:
                bits.choose(choices)
            bits.take(1)
    return Header(*size, 0 if bits.take(1) else bits.choose(DEPTHS), animated)


class _Bits:
    """A reader of bits, the lowest of each byte first."""

    def __init__(self, data: bytes) -> None:
        self.value = int.from_bytes(data, "little")
        self.left = 8 * len(data)

    def take(self, count: int) -> int:
        self.left -= count
        if self.left < 0:
            raise ValueError("the header of its codestream is cut off")
        taken = self.value & ((1 << count) - 1)
        self.value >>= count
        return taken

    def choose(self, choices: Choices) -> int:
        """A number behind the choice of its range, where there is more than one."""
        least, count = choices[self.take(2) if len(choices) > 1 else 0]
        return least + self.take(count)

    def size(self, exact: Choices, eighths: Choices) -> tuple[int, int]:
        """Height and width, exact or in units of 8 pixels; the width may be given by a ratio."""
        unit, choices = (8, eighths) if self.take(1) else (1, exact)
        height = unit * self.choose(choices)
        if ratio := self.take(3):
            across, down = RATIOS[ratio - 1]
            return height, height * across // down
        return height, unit * self.choose(choices)
