"""The one door to picture files: the content chooses the decoder and, with it, the encoder."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from pipeline.arrays import Image
from pipeline.errors import UserError
from pipeline.images import jpeg, png, tiff, webp
from pipeline.images.camera import camera_size, decode_camera, encode_camera
from pipeline.images.kinds import kind_of, other_kind
from pipeline.images.raster import Raster, Size

CANNOT_READ = "not an image that can be read"
CODECS: dict[str, ModuleType] = {"PNG": png, "JPEG": jpeg, "WebP": webp, "TIFF": tiff}


def true_kind(data: bytes, name: str) -> str:
    """The kind of a picture file, "" for none; a DNG is a TIFF file by its first bytes."""
    kind = kind_of(data[:64], name)
    return "RAW" if kind == "TIFF" and tiff.is_dng(data) else kind


def size(data: bytes, name: str) -> Size:
    """What a picture's header says.

    Raises:
        UserError: if it is damaged, or of a kind that is not supported.
    """
    with _explained(name):
        kind = _known(data, name)
        found: Size = (
            CODECS[kind].size(data, name) if kind in CODECS else camera_size(kind, data, name)
        )
        # A damaged header may give several values where one is due.
        return Size(*(operator.index(number) for number in found))


def decode(data: bytes, name: str) -> Raster:
    """Decode a picture file; `name` is for the messages.

    Raises:
        UserError: if it is damaged, or of a kind or with colours that are not supported.
    """
    with _explained(name):
        kind = _known(data, name)
        raster: Raster = (
            CODECS[kind].decode(data, name) if kind in CODECS else decode_camera(kind, data, name)
        )
    return raster


def encode(pixels: Image, source: bytes, name: str) -> bytes:
    """Encode pixels as the kind of file that `source` is, with all that belongs to it.

    Kinds that are read only (see `pipeline.images.camera`) become PNG.
    """
    with _explained(name, "its restored form cannot be written"):
        kind = true_kind(source, name)
        coded: bytes = (
            CODECS[kind].encode(pixels, source)
            if kind in CODECS
            else encode_camera(kind, pixels, source)
        )
    return coded


def _known(data: bytes, name: str) -> str:
    kind = true_kind(data, name)
    if not kind:
        what = other_kind(data)
        reason = f"this is {what}" if what else "damaged, or another kind of file"
        raise UserError(f"{name}: {CANNOT_READ} ({reason})")
    return kind


@contextmanager
def _explained(name: str, what: str = CANNOT_READ) -> Iterator[None]:
    """Whatever a damaged file makes of a codec is the file's fault, and one line."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:
        if "Insufficient memory" in str(error):  # OpenCV's
            raise MemoryError(str(error)) from None
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise UserError(f"{name}: {what} ({reason})") from None
