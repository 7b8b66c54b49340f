"""A user's photograph: pixels in, pixels out, and all that belongs to the file kept.

Bit depth, channels, ICC profile, EXIF (with the orientation, which is not applied) and XMP survive.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.errors import UserError
from pipeline.images import decode_any
from pipeline.restore.tiff import count_pages, decode_tiff, encode_tiff

Image = np.ndarray[Any, Any]
QUALITY = 95  # of JPEG and WebP files
TIFF = (".tif", ".tiff")


@dataclass(frozen=True)
class Photo:
    """A decoded photograph.

    Attributes:
        rgb: (H, W, 3), uint8 or uint16.
        suffix: of the file, lower case, such as ``.png``.
        grey: the file had one channel. alpha: (H, W) or None.
        metadata: as the file's kind needs it back.
        pages: pictures in the file, of which this is the first.
    """

    rgb: Image
    suffix: str
    grey: bool = False
    alpha: Image | None = None
    metadata: Any = field(default=None, repr=False)
    pages: int = 1


def decode_photo(data: bytes, name: str) -> Photo:
    """Decode a photograph.

    Raises:
        UserError: if it is damaged, or of a kind that cannot be restored.
    """
    suffix = "." + name.lower().rpartition(".")[2]
    with _explained(f"{name}: cannot be read"):
        if suffix in TIFF:
            image, metadata = decode_tiff(data, name)
            pages = count_pages(data)
        else:
            image, metadata = decode_any(data, name), _metadata(data)
            pages = _pages(data, name)
    alpha = None
    if image.ndim == 3 and image.shape[2] in (2, 4):
        image, alpha = image[..., :-1], np.ascontiguousarray(image[..., -1])
    grey = image.ndim == 2 or image.shape[2] == 1
    if grey:
        image = np.repeat(image.reshape(*image.shape[:2], 1), 3, axis=2)
    if image.shape[2] != 3:
        raise UserError(f"{name}: {image.shape[2]} colour channels; RGB or grey is supported")
    return Photo(np.ascontiguousarray(image), suffix, grey, alpha, metadata, pages)


def encode_photo(photo: Photo, restored: Image) -> bytes:
    """Encode restored pixels (H, W, 3), of the photograph's type, as the same kind of file."""
    image = restored
    if photo.grey:
        mean = restored.astype(np.float32).mean(axis=2)
        image = np.rint(mean).astype(restored.dtype)
    if photo.alpha is not None:
        image = np.dstack([image, photo.alpha])
    with _explained("its restored form cannot be written"):
        if photo.suffix in TIFF:
            return encode_tiff(image, photo.metadata, photo.alpha is not None)
        return _encode(photo, image)


@contextmanager
def _explained(message: str) -> Iterator[None]:
    """Whatever a damaged file makes of a codec is the file's fault, and stops no other file."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise UserError(f"{message} ({reason})") from None


def _pages(data: bytes, name: str) -> int:
    """How many pictures a file holds (animations); CMYK is refused.

    Raises:
        UserError: for CMYK, whose profile would not fit the RGB that a decoder makes of it.
    """
    from PIL import Image as Pillow

    with Pillow.open(io.BytesIO(data)) as file:
        if file.mode == "CMYK":
            raise UserError(f"{name}: colours are CMYK; RGB or grey is supported")
        return int(getattr(file, "n_frames", 1))


def _metadata(data: bytes) -> Any:
    """(types, blocks) as OpenCV writes them back."""
    import cv2

    _, types, blocks = cv2.imdecodeWithMetadata(
        np.frombuffer(data, np.uint8), flags=cv2.IMREAD_UNCHANGED
    )
    return list(types), list(blocks)


def _encode(photo: Photo, image: Image) -> bytes:
    import cv2

    orders = {3: cv2.COLOR_RGB2BGR, 4: cv2.COLOR_RGBA2BGRA}
    if image.ndim == 3 and image.shape[2] == 2:  # grey with alpha: PNG's writer wants RGBA
        image = np.dstack([image[..., :1]] * 3 + [image[..., 1]])
    bgr = cv2.cvtColor(image, orders[image.shape[2]]) if image.ndim == 3 else image
    options = {
        ".jpg": [cv2.IMWRITE_JPEG_QUALITY, QUALITY],
        ".jpeg": [cv2.IMWRITE_JPEG_QUALITY, QUALITY],
        ".webp": [cv2.IMWRITE_WEBP_QUALITY, QUALITY],
    }
    types, blocks = photo.metadata
    done, data = cv2.imencodeWithMetadata(
        photo.suffix, bgr, types, blocks, options.get(photo.suffix, [])
    )
    if not done:
        raise UserError(f"cannot write {image.shape}, {image.dtype} as {photo.suffix}")
    return bytes(data)
