"""Image files in and out: 8- and 16-bit RGB, nothing converted behind one's back."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline import storage
from pipeline.errors import UserError

Image = np.ndarray[Any, Any]
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp")


def read_image(url: str) -> Image:
    """Read an RGB image: uint8 or uint16, (H, W, 3).

    Raises:
        UserError: for a file that is missing, broken, no image, grey or with alpha.
    """
    return decode_image(storage.read_bytes(url), url)


def decode_image(data: bytes, name: str) -> Image:
    """Decode an RGB image's bytes; `name` is for the message."""
    image = decode_any(data, name)
    if image.ndim != 3 or image.shape[2] != 3:
        kind = "grey" if image.ndim == 2 else f"of {image.shape[2]} channels"
        raise UserError(f"{name}: the image is {kind}; an RGB image is needed")
    return image


def decode_any(data: bytes, name: str) -> Image:
    """Decode an image of any channel count: (H, W), (H, W, 3) RGB or (H, W, 4) RGBA."""
    import cv2

    flags = cv2.IMREAD_UNCHANGED
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags) if data else None
    except cv2.error:
        image = None
    if image is None:
        raise UserError(f"{name}: not an image that can be read (damaged, or another kind of file)")
    if image.dtype not in (np.uint8, np.uint16):
        raise UserError(f"{name}: pixels are {image.dtype}; 8 or 16 bits per channel are supported")
    if image.ndim == 3 and image.shape[2] == 3:
        image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    elif image.ndim == 3 and image.shape[2] == 4:
        image = cv2.cvtColor(image, cv2.COLOR_BGRA2RGBA)
    return np.ascontiguousarray(image)


def encode_png(image: Image) -> bytes:
    """Encode a (H, W) or (H, W, 3) RGB image, uint8 or uint16, as PNG."""
    import cv2

    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if image.ndim == 3 else image
    done, data = cv2.imencode(".png", bgr)
    if not done:
        raise ValueError(f"cannot encode an image of shape {image.shape}, {image.dtype}")
    return bytes(data)


def write_png(url: str, image: Image) -> None:
    """Write a (H, W) or (H, W, 3) RGB image, uint8 or uint16, whole."""
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
    names = [n for n in storage.list_names(url) if n.lower().endswith(IMAGE_SUFFIXES)]
    if not names:
        raise UserError(f"{url}: no image in this folder ({', '.join(IMAGE_SUFFIXES)})")
    return [storage.join(url, name) for name in names]
