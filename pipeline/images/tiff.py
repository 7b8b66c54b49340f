"""TIFF: tifffile's pixels in a new directory with the old one's own tags.

Every tag that does not describe how the pixels are stored is copied byte for byte, and the EXIF and
GPS directories with it; byte order, BigTIFF, bit depth and compression are those of the source.
"""

from __future__ import annotations

import io
import itertools
import struct
from math import prod
from typing import Any

import numpy as np

from pipeline.arrays import Image
from pipeline.errors import UserError
from pipeline.images import ifd, jpeg
from pipeline.images.raster import Raster, Size, full_scale

# Tags of how pixels are stored: the new file's count, and the old one's are left out.
STORAGE_TAGS = {254, 255, *range(256, 260), *range(262, 267), 273, *range(277, 282), 284, 288, 289}
STORAGE_TAGS |= {292, 293, 317, 320, *range(322, 326), 330, *range(338, 342), 347}
STORAGE_TAGS |= {*range(512, 522), *range(529, 533)}
ICC, DNG_VERSION, LAYERS = 34675, 50706, 37724
REDUCED, MASK = 1, 4  # bits of NewSubfileType
OLD_JPEG, JPEG, UNCOMPRESSED = 6, 7, 1
# Lossless compressions that are kept; anything else is written with zlib.
COMPRESSIONS = {UNCOMPRESSED: None, 5: "lzw", 8: "zlib", 32773: "packbits", 32946: "zlib"}
COMPRESSIONS |= {34925: "lzma", 50000: "zstd"}
PREDICTOR, PHOTOMETRIC, SUB_IFDS = 317, 262, 330
LUMA, LUMA_TOLERANCE = (0.299, 0.587, 0.114), 0.05
FULL_RANGE = np.array([[0, 128, 128], [255, 255, 255]], np.float32)  # of Y, Cb, Cr
DESCRIPTION, IMAGEJ = 270, {50838, 50839}
MOST_PAGES = 1000  # that are looked at
LARGEST_TILE = 1 << 24  # pixels; a larger one may be twice as large as the picture at most
LEAST_RANGE = 64  # of ReferenceBlackWhite; less is damaged


def size(data: bytes, name: str) -> Size:
    """What the header of the photograph's page says."""
    import tifffile

    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = _photograph(_pages(file))
        _require_bounded_parts(page, data, name)
        deep = 2 if np.max(page.bitspersample) > 8 else 1
        return Size(page.imagelength, page.imagewidth, page.samplesperpixel, deep)


def decode(data: bytes, name: str) -> Raster:
    """Decode the photograph of a TIFF file: the first page that is no reduced copy.

    Raises:
        UserError: if it is damaged, or of a kind that cannot be restored.
    """
    import tifffile

    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            pages = _pages(file)
            page: Any = _photograph(pages)
            form = ifd.Form(file.byteorder, bool(file.is_bigtiff))
            pixels, notes = _pixels(page, name)
            directory = _directory(data, form, page.offset)
            count = _count(file, pages)
    except UserError:
        raise
    except Exception as error:  # tifffile and its codecs raise many kinds
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise UserError(f"{name}: not a TIFF that can be read ({reason})") from None
    if count > 1:
        notes.append(f"only the first of its {count} pictures is restored; the others are dropped")
    elif len(pages) > 1 or SUB_IFDS in pages[0].tags:
        notes.append("its reduced copies (thumbnails) are dropped")
    if LAYERS in directory:
        notes.append("its layers (Photoshop) are dropped: they hold the unrestored picture")
    (orientation,) = ifd.integers(directory.get(ifd.ORIENTATION), form)[:1] or (1,)
    icc = directory[ICC].value if ICC in directory else b""
    return Raster(pixels, orientation if orientation in range(1, 9) else 1, bytes(icc), None, notes)


def encode(pixels: Image, source: bytes) -> bytes:
    """Encode pixels with all that belongs to the source file."""
    import tifffile

    with tifffile.TiffFile(io.BytesIO(source)) as file:
        pages = _pages(file)
        page: Any = _photograph(pages)
        stacked = _count(file, pages) > 1
        form = ifd.Form(file.byteorder, bool(file.is_bigtiff))
        old = _directory(source, form, page.offset)
        compression = COMPRESSIONS.get(int(page.compression), "zlib")
        options: dict[str, Any] = {"compression": compression, "byteorder": form.order}
        options["photometric"] = _photometric(page) if _is_grey(page) else "rgb"
        if compression and int(page.predictor) == 2:
            options["predictor"] = 2
        if pixels.ndim == 3 and pixels.shape[2] in (2, 4):
            extra = [tifffile.EXTRASAMPLE(one).name.lower() for one in page.extrasamples]
            options["extrasamples"] = extra[:1] or ["unassalpha"]
    stream = io.BytesIO()
    options["planarconfig"] = "contig" if pixels.ndim == 3 else None
    if options["photometric"] == "miniswhite":
        pixels = _inverted(pixels)
    tifffile.imwrite(stream, pixels, bigtiff=form.big, metadata=None, software=False, **options)
    with stream.getbuffer() as view:
        new = ifd.read_directory(view, form, *struct.unpack_from(form.offset, view, form.inline))
    merged = {code: tag for code, tag in old.items() if code not in {*STORAGE_TAGS, LAYERS}}
    merged |= {code: tag for code, tag in new.items() if code in STORAGE_TAGS}
    if stacked:  # what it says of the other pictures
        told = bytes(merged[DESCRIPTION].value) if DESCRIPTION in merged else b""
        theirs = {DESCRIPTION} if told.startswith(b"ImageJ=") or b"<OME" in told else set()
        merged = {code: tag for code, tag in merged.items() if code not in IMAGEJ | theirs}
    base = stream.seek(0, io.SEEK_END)
    base += stream.write(bytes(-base % 8))
    tail = bytearray()
    first = ifd.append_directory(tail, form, merged, base)
    stream.write(tail)
    stream.seek(form.inline)
    stream.write(struct.pack(form.offset, first))
    return stream.getvalue()


def is_dng(data: bytes) -> bool:
    """Whether a TIFF file is a raw photograph in Adobe's format."""
    try:
        return DNG_VERSION in ifd.first_directory(data)
    except (ValueError, struct.error):
        return False


def _directory(data: bytes, form: ifd.Form, place: int) -> ifd.Directory:
    """A page's tags; what it does not say itself (EXIF, ...), the file's first directory says."""
    return {**ifd.first_directory(data), **ifd.read_directory(data, form, place)}


def _pages(file: Any) -> list[Any]:
    """The first pages: a chain of a million small ones takes minutes to walk."""
    return list(itertools.islice(file.pages, MOST_PAGES))


def _count(file: Any, pages: list[Any]) -> int:
    """Of how many pictures of full size the file is a stack, as far as its pages are looked at."""
    full = [page for page in pages if not _subfile(page) & (REDUCED | MASK)]
    return max(len(full), int((file.imagej_metadata or {}).get("images", 1)))


def _subfile(page: Any) -> int:
    return int(getattr(page, "subfiletype", 0) or 0)


def _photograph(pages: list[Any]) -> Any:
    """The first page that is no reduced copy and no mask, then such a SubIFD; else the largest."""
    if not pages:
        raise ValueError("it holds no picture")
    below = [one for page in pages for one in getattr(page, "pages", None) or []]
    full = [page for page in [*pages, *below] if not _subfile(page) & (REDUCED | MASK)]
    if full:
        return getattr(full[0], "aspage", lambda: full[0])()
    return max(pages, key=lambda page: page.imagewidth * page.imagelength)


def _photometric(page: Any) -> str:
    import tifffile

    if PHOTOMETRIC not in page.tags:  # libtiff's assumption
        return "rgb" if page.samplesperpixel >= 3 else "minisblack"
    return str(tifffile.PHOTOMETRIC(page.photometric).name).lower()


def _is_grey(page: Any) -> bool:
    return _photometric(page) in ("minisblack", "miniswhite")


def _inverted(grey: Image) -> Image:
    """White is zero <-> black is zero; alpha stays."""
    most = np.iinfo(grey.dtype).max
    return most - grey if grey.ndim == 2 else np.dstack([most - grey[..., 0], grey[..., 1:]])


def _pixels(page: Any, name: str) -> tuple[Image, list[str]]:
    """A page's pixels at full scale, and what is said about them.

    Raises:
        UserError: for pixels or colours that are not supported.
    """
    colours, bits, notes = _photometric(page), page.bitspersample, []
    if isinstance(bits, tuple):
        if len({*bits}) > 1:
            raise UserError(f"{name}: channels of {bits} bits; one depth for all is supported")
        bits = bits[0]
    whole = int(page.sampleformat) == 1 if not isinstance(page.sampleformat, tuple) else False
    if not whole or not 8 <= bits <= 16:
        what = f"{bits}-bit" if whole else "floating-point or signed"
        raise UserError(f"{name}: pixels are {what}; 8 to 16 bits per channel are supported")
    if colours not in ("rgb", "minisblack", "miniswhite", "ycbcr"):
        raise UserError(f"{name}: colours are {colours}; RGB or grey is supported")
    samples = page.samplesperpixel
    if (colours == "rgb" and samples < 3) or (colours == "miniswhite" and samples > 2):
        raise UserError(f"{name}: {colours} in {samples} channels; RGB or grey is supported")
    _require_all_parts(page, name)
    pixels = page.asarray()
    if int(page.planarconfig) == 2 and pixels.ndim == 3 and page.samplesperpixel > 1:
        pixels = np.moveaxis(pixels, 0, -1)
    if pixels.dtype not in (np.uint8, np.uint16) or pixels.ndim not in (2, 3):
        raise UserError(f"{name}: {pixels.dtype} of shape {pixels.shape} is not supported")
    pixels = np.ascontiguousarray(pixels.astype(pixels.dtype.newbyteorder("="), copy=False))
    if bits not in (8, 16):
        pixels = full_scale(pixels, bits)
        notes.append(f"its {bits} bits per channel are written as 16")
    if colours == "miniswhite":
        pixels = _inverted(pixels)
    if colours == "ycbcr":
        if int(page.compression) not in (OLD_JPEG, JPEG):  # whose codecs give RGB
            pixels = _rgb_of_ycbcr(pixels, page, name)
        notes.append("its colours are YCbCr; it is written as RGB")
    return pixels, notes


def _require_bounded_parts(page: Any, data: bytes, name: str) -> None:
    """A strip or tile is unpacked as a whole, however little of it the picture shows."""
    area, tile = page.imagelength * page.imagewidth, page.tilelength * page.tilewidth
    if page.imagedepth != 1 or tile * max(1, page.tiledepth) > max(LARGEST_TILE, 2 * area):
        raise UserError(f"{name}: its tiles are larger than its picture, or it is a volume")
    if int(page.compression) != JPEG:
        return
    for place, count in zip(page.dataoffsets, page.databytecounts, strict=False):
        inner = jpeg.size(data[place : place + count], name) if count else None
        if inner and inner.height * inner.width > 2 * max(area, tile):
            raise UserError(f"{name}: damaged: a tile holds a larger picture than the file says")


def _require_all_parts(page: Any, name: str) -> None:
    """tifffile takes strips and tiles that are missing for black."""
    parts, offsets, counts = prod(page.chunked), len(page.dataoffsets), len(page.databytecounts)
    if offsets != counts or (offsets < parts and not page.is_contiguous):
        raise UserError(
            f"{name}: damaged: of its {parts} strips or tiles, {min(offsets, counts)} can be found"
        )


def _rgb_of_ycbcr(pixels: Image, page: Any, name: str) -> Image:
    """TIFF 6.0, section 21; full range where ReferenceBlackWhite is missing."""
    subsampling = tuple(page.subsampling or (1, 1))
    if subsampling != (1, 1) or pixels.dtype != np.uint8 or pixels.shape[-1] != 3:
        raise UserError(
            f"{name}: YCbCr is supported with 8 bits, three channels and no subsampling, or as JPEG"
        )
    luma, found = (np.asarray(_rationals(page, code), np.float32) for code in (529, 532))
    if luma.size != 3 or not (luma.min() > 0 and abs(luma.sum() - 1) < LUMA_TOLERANCE):
        luma = np.asarray(LUMA, np.float32)  # missing or damaged
    low, high = found.reshape(3, 2).T if found.size == 6 else FULL_RANGE
    if not (low.min() >= 0 and high.max() <= 255 and (high - low).min() >= LEAST_RANGE):
        low, high = FULL_RANGE
    red, green, blue = luma
    y, cb, cr = np.moveaxis(
        (pixels - low) * np.array([255, 127, 127], np.float32) / (high - low), -1, 0
    )
    r, b = y + cr * (2 - 2 * red), y + cb * (2 - 2 * blue)
    rgb = np.stack([r, (y - red * r - blue * b) / green, b], axis=-1)
    return np.rint(np.clip(rgb, 0, 255)).astype(np.uint8)


def _rationals(page: Any, code: int) -> tuple[float, ...]:
    """A tag of fractions, which tifffile gives as numerators and denominators in turn."""
    if code not in page.tags:
        return ()
    values = [float(value) for value in page.tags[code].value]
    if page.tags[code].dtype in (5, 10):
        values = [n / (d or np.nan) for n, d in zip(values[::2], values[1::2], strict=True)]
    return tuple(values)
