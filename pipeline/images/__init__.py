"""Image files: decoded and encoded without a silent change of depth, colours or size."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline import storage
from pipeline.arrays import Image
from pipeline.errors import UserError
from pipeline.images.codecs import decode, size
from pipeline.images.kinds import IMAGE_SUFFIXES, is_image_name
from pipeline.images.png import encode_plain as encode_png

__all__ = [
    "IMAGE_SUFFIXES",
    "Image",
    "decode_any",
    "decode_image",
    "encode_png",
    "from_float",
    "is_image_name",
    "list_images",
    "read_image",
    "to_float",
    "write_png",
]

MOST_BYTES = 1 << 32  # of pixels, where no option says how many fit


def read_image(url: str) -> Image:
    """Read an RGB image: uint8 or uint16, (H, W, 3).

    Raises:
        UserError: for a file that is missing, damaged, not an image, grey or has alpha, or that
            does not fit into memory.
    """
    try:
        return decode_image(storage.read_bytes(url), url)
    except MemoryError:
        raise UserError(f"{url}: does not fit into memory") from None


def decode_image(data: bytes, name: str) -> Image:
    """Decode an RGB image's bytes; `name` is for the message."""
    image = decode_any(data, name)
    if image.ndim != 3 or image.shape[2] != 3:
        kind = "grey" if image.ndim == 2 else f"of {image.shape[2]} channels"
        raise UserError(f"{name}: the image is {kind}; an RGB image is needed")
    return image


def decode_any(data: bytes, name: str) -> Image:
    """Decode an image of any channel count, uint8 or uint16; the orientation is not applied.

    Returns:
        (H, W) grey, (H, W, 2) with alpha, (H, W, 3) RGB or (H, W, 4) RGBA.

    Raises:
        UserError: if it is damaged, not an image, or its header says more than 4 GiB of pixels.
    """
    header = size(data, name)
    if header.bytes > MOST_BYTES:
        pixels = f"{header.width}x{header.height} pixels"
        raise UserError(f"{name}: {pixels}, {header.bytes / 1e9:.0f} GB; at most 4 are read")
    return np.ascontiguousarray(decode(data, name).pixels)


def write_png(url: str, image: Image) -> None:
    """Write a (H, W) or (H, W, 3) RGB image, uint8 or uint16."""
    storage.write_bytes(url, encode_png(image))


def to_float(image: Image) -> Image:
    """uint8 or uint16 to float32 in [0, 1]."""
    floats = image.astype(np.float32)
    floats /= np.float32(np.iinfo(image.dtype).max)  # in place: photographs are large
    return floats


def from_float(image: Image, dtype: Any) -> Image:
    """Float in [0, 1] to uint8 or uint16, clamped and rounded."""
    scaled = np.clip(image, 0.0, 1.0)
    scaled *= np.iinfo(dtype).max
    return np.rint(scaled, out=scaled).astype(dtype)


def list_images(url: str) -> list[str]:
    """URLs of the image files directly in a folder, sorted by name.

    Raises:
        UserError: if the folder is missing or holds no image.
    """
    if not storage.is_dir(url):
        raise UserError(f"{url}: no such folder")
    names = [name for name in storage.list_names(url) if is_image_name(name)]
    if not names:
        raise UserError(f"{url}: no image in this folder ({', '.join(IMAGE_SUFFIXES)})")
    return [storage.join(url, name) for name in names]
