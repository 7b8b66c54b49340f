"""A user's photograph as the network takes it, and the way back into a file of the same kind."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from pipeline.arrays import Image
from pipeline.errors import UserError
from pipeline.images import codecs
from pipeline.images.colour import Tone, tone_of
from pipeline.images.kinds import SUFFIXES, WRITTEN

# numpy's view of EXIF orientations 1 to 8: (transposed, rows reversed, columns reversed)
TURNS = [(0, 0, 0), (0, 0, 1), (0, 1, 1), (0, 1, 0), (1, 0, 0), (1, 0, 1), (1, 1, 1), (1, 1, 0)]


@dataclass(frozen=True)
class Photo:
    """A decoded photograph.

    Attributes:
        rgb: (H, W, 3), uint8 or uint16: numbers of sRGB's tone curve.
        grey: whether the file has one channel. alpha: (H, W) or None.
        tone: to and from the file's own numbers; None where they are sRGB's.
        orientation: of EXIF, 1 to 8; not applied to `rgb`.
        notes: what the restored file cannot keep, for the user.
        source: the file's bytes; its name is for the messages.
    """

    rgb: Image
    grey: bool
    alpha: Image | None
    tone: Tone | None
    orientation: int
    notes: list[str]
    source: bytes = field(repr=False)
    name: str


def decode_photo(data: bytes, name: str) -> Photo:
    """Decode a photograph.

    Raises:
        UserError: if it is damaged, or of a kind that cannot be restored.
    """
    raster = codecs.decode(data, name)
    image, alpha = raster.pixels, None
    if image.dtype not in (np.uint8, np.uint16):
        raise UserError(f"{name}: pixels are {image.dtype}; 8 or 16 bits are supported")
    if image.ndim == 3 and image.shape[2] in (2, 4):
        image, alpha = image[..., :-1], np.ascontiguousarray(image[..., -1])
    grey = image.ndim == 2 or image.shape[2] == 1
    if grey:
        image = np.repeat(image.reshape(*image.shape[:2], 1), 3, axis=2)
    if image.shape[2] != 3:
        raise UserError(f"{name}: {image.shape[2]} colour channels; RGB or grey is supported")
    tone = tone_of(raster.icc, raster.transfer, grey, image.dtype)
    rgb = np.ascontiguousarray(image) if tone is None else tone.to_srgb(image)
    return Photo(rgb, grey, alpha, tone, raster.orientation, raster.notes, data, name)


def encode_photo(photo: Photo, restored: Image) -> bytes:
    """Encode restored pixels (H, W, 3), of the type of `photo.rgb`, as the same kind of file.

    Raises:
        UserError: if the kind of file cannot hold them.
    """
    image = restored if photo.tone is None else photo.tone.from_srgb(restored)
    if photo.grey:
        mean = image.astype(np.float32).mean(axis=2)
        image = np.rint(mean).astype(image.dtype)
    if photo.alpha is not None:
        image = np.dstack([image, photo.alpha])
    return codecs.encode(image, photo.source, photo.name)


def output_name(name: str, data: bytes) -> tuple[str, str]:
    """The restored file's name, and why it is another one than the photograph's, or ""."""
    kind = codecs.true_kind(data, name)
    written = kind if kind in WRITTEN else "PNG"
    if name.lower().endswith(SUFFIXES[written]):
        return name, ""
    stem, dot, _ = name.rpartition(".")
    renamed = (stem if dot and stem else name) + SUFFIXES[written][0]
    reason = f"holds {kind}, whatever its suffix says; " if kind in WRITTEN else ""
    return renamed, f"{reason}written as {renamed}"


def upright(image: Image, orientation: int) -> Image:
    """An image (H, W, ...) as it is shown, its EXIF orientation applied."""
    transposed, rows, columns = TURNS[orientation - 1]
    if transposed:
        image = image.swapaxes(0, 1)
    return np.ascontiguousarray(image[:: -1 if rows else 1, :: -1 if columns else 1])
