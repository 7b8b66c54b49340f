"""A user's photograph: pixels in, pixels out, and all that belongs to the file kept.

Bit depth, channels, ICC profile, EXIF (with the orientation, which is not applied) and XMP survive.
Of a TIFF the base tags survive, but not a nested EXIF directory.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.errors import UserError
from pipeline.images import decode_any

Image = np.ndarray[Any, Any]
QUALITY = 95  # of JPEG and WebP files
# Base tags of a TIFF that are carried over: description, make, model, orientation, software,
# date, artist, XMP, copyright, ICC profile.
TIFF_TAGS = (270, 271, 272, 274, 305, 306, 315, 700, 33432, 34675)


@dataclass(frozen=True)
class Photo:
    """A decoded photograph.

    Attributes:
        rgb: (H, W, 3), uint8 or uint16.
        suffix: of the file, lower case, such as ``.png``.
        grey: the file had one channel. alpha: (H, W) or None.
        metadata: as the file's kind needs it back.
    """

    rgb: Image
    suffix: str
    grey: bool = False
    alpha: Image | None = None
    metadata: Any = field(default=None, repr=False)


def decode_photo(data: bytes, name: str) -> Photo:
    """Decode a photograph.

    Raises:
        UserError: if it is damaged, or of a kind that cannot be restored.
    """
    suffix = "." + name.lower().rpartition(".")[2]
    if suffix in (".tif", ".tiff"):
        image, metadata = _decode_tiff(data, name)
    else:
        image, metadata = decode_any(data, name), _metadata(data)
    alpha = None
    if image.ndim == 3 and image.shape[2] in (2, 4):
        image, alpha = image[..., :-1], np.ascontiguousarray(image[..., -1])
    grey = image.ndim == 2 or image.shape[2] == 1
    if grey:
        image = np.repeat(image.reshape(*image.shape[:2], 1), 3, axis=2)
    if image.shape[2] != 3:
        raise UserError(f"{name}: {image.shape[2]} colour channels; RGB or grey is supported")
    return Photo(np.ascontiguousarray(image), suffix, grey, alpha, metadata)


def encode_photo(photo: Photo, restored: Image) -> bytes:
    """Encode restored pixels (H, W, 3), of the photograph's type, as the same kind of file."""
    image = restored
    if photo.grey:
        mean = restored.astype(np.float32).mean(axis=2)
        image = np.rint(mean).astype(restored.dtype)
    if photo.alpha is not None:
        image = np.dstack([image, photo.alpha])
    if photo.suffix in (".tif", ".tiff"):
        return _encode_tiff(photo, image)
    return _encode(photo, image)


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


def _decode_tiff(data: bytes, name: str) -> tuple[Image, Any]:
    import tifffile

    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            page: Any = file.pages[0]
            image = page.asarray()
            kept = [(t.code, t.dtype, t.count, t.value) for t in page.tags if t.code in TIFF_TAGS]
    except Exception as error:  # tifffile and its codecs raise many kinds
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise UserError(f"{name}: not a TIFF that can be read ({reason})") from None
    if image.dtype not in (np.uint8, np.uint16) or image.ndim not in (2, 3):
        raise UserError(f"{name}: {image.dtype} of shape {image.shape}; 8 or 16 bits are supported")
    return image, kept


def _encode_tiff(photo: Photo, image: Image) -> bytes:
    import tifffile

    stream = io.BytesIO()
    options: dict[str, Any] = {"extrasamples": ["unassalpha"]} if photo.alpha is not None else {}
    tifffile.imwrite(
        stream,
        image,
        photometric="minisblack" if photo.grey else "rgb",
        compression="zlib",
        metadata=None,
        software=False,
        extratags=[(*tag, True) for tag in photo.metadata],
        **options,
    )
    return stream.getvalue()
