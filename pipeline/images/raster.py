"""The pixels of a picture file as they are stored, and what else has to be known about them."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from pipeline.arrays import Image


class Size(NamedTuple):
    """What a header says of a picture, before its pixels are decoded."""

    height: int
    width: int
    channels: int
    bytes_each: int

    @property
    def bytes(self) -> int:
        """Of the decoded pixels."""
        return self.height * self.width * self.channels * self.bytes_each


@dataclass(frozen=True)
class Raster:
    """A decoded picture.

    Attributes:
        pixels: uint8 or uint16; (H, W), (H, W, 2) with alpha, (H, W, 3) RGB, (H, W, 4) RGBA. The
            orientation is not applied.
        orientation: of EXIF, 1 to 8.
        icc: the ICC profile, or b"".
        transfer: without a profile, the exponent that gives linear light; None means sRGB.
        notes: what is changed or dropped when the picture is written again, for the user.
    """

    pixels: Image
    orientation: int = 1
    icc: bytes = b""
    transfer: float | None = None
    notes: list[str] = field(default_factory=list)


def full_scale(pixels: Image, bits: int) -> Image:
    """Values from 0 to 2^bits - 1 spread over 8 or, of more bits, over 16."""
    dtype: Any = np.uint8 if bits <= 8 else np.uint16
    most, full = 2**bits - 1, int(np.iinfo(dtype).max)
    if most == full or bits > 16:  # more bits are refused with the type
        return pixels
    return ((pixels.astype(np.uint32) * full + most // 2) // most).astype(dtype)


def open_with_pillow(data: bytes) -> Any:
    """Pillow's view of a file; its limit on pixels gives way to the bound on memory."""
    from PIL import Image as Pillow

    Pillow.MAX_IMAGE_PIXELS = None
    return Pillow.open(io.BytesIO(data))
