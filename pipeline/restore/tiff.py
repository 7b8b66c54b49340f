"""TIFF files: tifffile's pixels, and the tags that it does not carry over by itself."""

from __future__ import annotations

import io
import struct
import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.errors import UserError

Image = np.ndarray[Any, Any]
# Base tags that are carried over: description, make, model, orientation, software, date, artist,
# XMP, copyright, ICC profile.
TAGS = (270, 271, 272, 274, 305, 306, 315, 700, 33432, 34675)
DIRECTORIES = (34665, 34853)  # EXIF and GPS lie in directories of their own
INTEROPERABILITY = 40965  # a directory within EXIF's: its offset would point nowhere
SEPARATE = 2  # planes of one colour each
LONG, ENTRY = 4, 12  # a 32-bit number, as TIFF counts its types; bytes of a directory's entry


@dataclass(frozen=True)
class TiffMetadata:
    """What a TIFF needs back.

    Attributes:
        photometric: rgb, minisblack or miniswhite. alpha: "", assocalpha or unassalpha.
        tags: (code, type, count, value) each.
        directories: code of the tag that points there -> Pillow's image file directory.
    """

    photometric: str
    alpha: str
    tags: list[tuple[Any, ...]] = field(repr=False)
    directories: dict[int, Any] = field(repr=False)


def decode_tiff(data: bytes, name: str) -> tuple[Image, TiffMetadata]:
    """The first page: (H, W) or (H, W, channels), uint8 or uint16.

    Raises:
        UserError: if it is damaged, or of a kind that cannot be restored.
    """
    import tifffile

    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            page: Any = file.pages[0]
            image = page.asarray()
            kind = tifffile.PHOTOMETRIC(page.photometric).name.lower()
            extra = [tifffile.EXTRASAMPLE(one).name.lower() for one in page.extrasamples]
            tags = [(t.code, t.dtype, t.count, t.value) for t in page.tags if t.code in TAGS]
            places = {
                code: struct.unpack_from(f"{file.byteorder}I", data, page.tags[code].offset + 8)[0]
                for code in DIRECTORIES
                if code in page.tags and not file.is_bigtiff
            }
            separate = int(page.planarconfig) == SEPARATE and image.ndim == 3
    except Exception as error:  # tifffile and its codecs raise many kinds
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise UserError(f"{name}: not a TIFF that can be read ({reason})") from None
    if separate:
        image = np.moveaxis(image, 0, -1)
    if image.dtype not in (np.uint8, np.uint16) or image.ndim not in (2, 3):
        raise UserError(f"{name}: {image.dtype} of shape {image.shape}; 8 or 16 bits are supported")
    if kind == "ycbcr":  # its codec has made RGB of it
        kind = "rgb"
    if kind not in ("rgb", "minisblack", "miniswhite"):
        raise UserError(f"{name}: colours are {kind}; RGB or grey is supported")
    alpha = extra[0] if extra and extra[0] in ("assocalpha", "unassalpha") else "unassalpha"
    directories = {code: _directory(data, place) for code, place in places.items()}
    return image, TiffMetadata(kind, alpha, tags, {c: d for c, d in directories.items() if d})


def count_pages(data: bytes) -> int:
    """How many pages a TIFF has; its first can be read."""
    import tifffile

    with tifffile.TiffFile(io.BytesIO(data)) as file:
        return len(file.pages)


def encode_tiff(image: Image, metadata: TiffMetadata, alpha: bool) -> bytes:
    """One page with the metadata of the page that it was."""
    import tifffile

    stream = io.BytesIO()
    options: dict[str, Any] = {"extrasamples": [metadata.alpha]} if alpha else {}
    tifffile.imwrite(
        stream,
        image,
        byteorder="<",
        photometric=metadata.photometric,
        compression="zlib",
        metadata=None,
        software=False,
        extratags=[_extra(*tag) for tag in metadata.tags],
        **options,
    )
    return _with_directories(bytearray(stream.getvalue()), metadata.directories)


def _extra(code: int, kind: Any, count: int, value: Any) -> tuple[Any, ...]:
    """A tag as tifffile writes it; it takes text beyond ASCII as bytes only."""
    if isinstance(value, str):
        return code, kind, 0, value.encode() + b"\0", True
    return code, kind, count, value, True


def _directory(data: bytes, place: int) -> Any:
    """The directory at a place of a file; None where it is damaged."""
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    stream, directory = io.BytesIO(data), ImageFileDirectory_v2(data[:8])
    stream.seek(place)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # of a damaged one Pillow gives a part, and warns
            directory.load(stream)
            values = dict(directory)  # decodes them all
    except Exception:  # whatever a damaged directory makes of Pillow
        return None
    return {
        code: (directory.tagtype[code], value)
        for code, value in values.items()
        if code != INTEROPERABILITY
    }


def _with_directories(data: bytearray, directories: dict[int, Any]) -> bytes:
    """Append directories, and a first directory anew that names them: tifffile writes none."""
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    if not directories:
        return bytes(data)
    (first,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, first)
    starts = range(first + 2, first + 2 + ENTRY * count, ENTRY)
    entries = [bytes(data[start : start + ENTRY]) for start in starts]
    for code, values in directories.items():
        data += bytes(len(data) % 2)
        entries.append(struct.pack("<HHII", code, LONG, 1, len(data)))
        directory = ImageFileDirectory_v2(b"II*\0\0\0\0\0")
        for inner, (kind, value) in values.items():
            directory.tagtype[inner] = kind
            directory[inner] = value
        data += directory.tobytes(len(data))
    data += bytes(len(data) % 2)
    struct.pack_into("<I", data, 4, len(data))
    entries.sort(key=lambda entry: struct.unpack_from("<H", entry))
    return bytes(data + struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4))
