"""Photographs as people have them: what a file was, its restored form is; read by Pillow."""

from __future__ import annotations

import io
import logging
import os
import re
import struct
import subprocess
import sys
import threading
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import cv2
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image as Pillow
from PIL import ImageCms, ImageOps, TiffImagePlugin

from era import ErA, named_config
from pipeline import freed_memory
from pipeline.checkpoint import LoadedModel
from pipeline.errors import UserError
from pipeline.images import codecs, decode_any, encode_png, ifd
from pipeline.images.colour import encode_srgb, tone_of
from pipeline.images.png import chunk, profile_chunk, with_chunks
from pipeline.images.raster import Size
from pipeline.inference import restore_array
from pipeline.restore import memory, restore, run
from pipeline.restore.inputs import expand
from pipeline.restore.memory import plan
from pipeline.restore.photo import decode_photo, encode_photo, output_name, upright

FIELDS: dict[str, Any] = {
    "stages": 2,
    "kernels": 3,
    "kernel_size": 7,
    "radius_max": 3.0,
    "prior_channels": (4, 8),
    "error_channels": (4,),
    "estimator_channels": (4,),
}
NOTHING_MORE = {"scaled": False, "compare": False, "maps": False}
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def picture(height: int = 48, width: int = 64) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / 9) + np.cos(y / 5) / 4, np.cos((x + y) / 11), np.sin(y / 7 + x / 30)]
    return (128 + 75 * np.stack(waves, axis=-1)).clip(5, 250).astype(np.uint8)


def coded(kind: str, image: np.ndarray | None = None, mode: str = "RGB", **options: Any) -> bytes:
    """A file by Pillow."""
    stream = io.BytesIO()
    Pillow.fromarray(picture() if image is None else image).convert(mode).save(
        stream, kind, **options
    )
    return stream.getvalue()


def tiff(*pages: np.ndarray, **options: Any) -> bytes:
    """A TIFF file by tifffile; options are of the last page."""
    stream = io.BytesIO()
    with tifffile.TiffWriter(stream, **options.pop("file", {})) as file:
        for page in pages:
            file.write(page, metadata=None, **{"photometric": "rgb", **options})
    return stream.getvalue()


def again(data: bytes, name: str) -> bytes:
    """Decode a photograph and encode it again, without the network."""
    photo = decode_photo(data, name)
    return encode_photo(photo, photo.rgb)


def with_tag(data: bytes, code: int, tag: ifd.Tag) -> bytes:
    """A classic TIFF file with one more tag."""
    out, form = bytearray(data), ifd.form_of(data)
    place = ifd.append_directory(out, form, {**ifd.first_directory(data), code: tag})
    struct.pack_into(form.offset, out, form.inline, place)
    return bytes(out)


def opened(data: bytes) -> Any:
    return Pillow.open(io.BytesIO(data))


def long_profile(size: int = 200_000) -> bytes:
    profile = bytearray(SRGB) + bytes(n * 7 % 256 for n in range(size - len(SRGB)))
    struct.pack_into(">I", profile, 0, size)
    return bytes(profile)


def curve_profile(gamma: float) -> bytes:
    """A matrix profile of one gamma for all channels."""
    curve = b"curv\0\0\0\0\0\0\0\1" + struct.pack(">H", round(gamma * 256)) + b"\0\0"
    rows = b"".join(
        struct.pack(">4sII", name, 168, len(curve)) for name in (b"rTRC", b"gTRC", b"bTRC")
    )
    return SRGB[:128] + struct.pack(">I", 3) + rows + curve


# Metadata, byte for byte


def exif_block() -> bytes:
    values = Pillow.Exif()
    values[274] = 6
    values[271] = "Maker"
    values.get_ifd(34665)[37500] = b"a maker's note" * 20
    values.get_ifd(34665)[36867] = "2020:01:01 00:00:00"
    values.get_ifd(34853)[1] = "N"
    return values.tobytes()


def test_a_jpeg_keeps_every_segment_of_its_own() -> None:
    iptc = b"Photoshop 3.0\x008BIM\x04\x04\0\0\0\0\0\x0a\x1c\x02\x05\0\5title"
    xmp = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'/>"
    options = {"icc_profile": long_profile(), "exif": exif_block(), "dpi": (300, 300), "xmp": xmp}
    source = coded("JPEG", comment=b"a comment", **options)
    source = source[:2] + b"\xff\xed" + struct.pack(">H", len(iptc) + 2) + iptc + source[2:]
    before, after = opened(source), opened(again(source, "a.jpg"))
    for key in ("icc_profile", "exif", "dpi", "xmp", "comment", "photoshop", "jfif_unit"):
        assert before.info[key] == after.info[key], key
    assert after.getexif()[274] == 6
    after.load()


@pytest.mark.parametrize(("sampling", "factors"), [(0, (1, 1)), (1, (2, 1)), (2, (2, 2))])
@pytest.mark.parametrize("progressive", [False, True])
def test_chroma_subsampling_and_progression_stay(
    sampling: int, factors: tuple[int, int], progressive: bool
) -> None:
    source = coded("JPEG", subsampling=sampling, progressive=progressive)
    after = opened(again(source, "a.jpg"))
    assert after.layer[0][1:3] == factors
    assert bool(after.info.get("progressive")) == progressive


def test_rgb_and_grey_jpegs_stay_so() -> None:
    rgb = again(coded("JPEG", keep_rgb=True), "a.jpg")
    assert np.abs(np.asarray(opened(rgb)).astype(int) - picture()).mean() < 3
    assert [layer[0] for layer in opened(rgb).layer] == [*b"RGB"]
    assert opened(again(coded("JPEG", mode="L"), "a.jpg")).mode == "L"


ADOBE = b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0"  # and one byte: 0 is RGB, 1 is YCbCr
JFIF = coded("JPEG")[2:20]


@pytest.mark.parametrize("segments", [b"", JFIF, ADOBE + b"\1", JFIF + ADOBE + b"\0"])
@pytest.mark.parametrize("rgb", [False, True])
def test_colours_of_a_jpeg_are_as_other_readers_see_them(segments: bytes, rgb: bool) -> None:
    """Where JFIF and Adobe disagree, readers (libjpeg) believe JFIF."""
    plain = coded("JPEG", quality=95, subsampling=0, keep_rgb=rgb)
    start = plain.find(b"\xff\xdb")
    source = plain[:2] + segments + plain[start:]
    seen = np.asarray(opened(source).convert("RGB")).astype(int)
    after = np.asarray(opened(again(source, "a.jpg")).convert("RGB"))
    assert np.abs(after - seen).mean() < 2


def interlaced(image: np.ndarray, colours: int) -> bytes:
    """A PNG in the seven passes of Adam7."""
    height, width = image.shape[:2]
    starts = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2)]
    rows = b"".join(
        b"\0" + row.astype(image.dtype.newbyteorder(">")).tobytes()
        for y, x, down, across in [*starts, (1, 0, 2, 1)]
        for row in image[y::down, x::across]
    )
    head = struct.pack(">IIBBBBB", width, height, image.itemsize * 8, colours, 0, 0, 1)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return codecs.png.SIGNATURE + body


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize(("channels", "colours"), [(1, 0), (2, 4), (3, 2), (4, 6)])
def test_interlaced_pngs(channels: int, colours: int, dtype: type) -> None:
    image = np.dstack([picture(), picture()[..., :1]])[..., :channels].squeeze()
    image = image.astype(dtype) * (np.iinfo(dtype).max // 255)
    source = interlaced(image, colours)
    assert np.array_equal(decode_any(source, "a.png"), image)
    assert np.array_equal(decode_any(again(source, "a.png"), "a.png"), image)


TIFFS: dict[str, dict[str, Any]] = {
    "tiles": {"tile": (32, 32)},
    "tiles and predictor": {"tile": (16, 16), "compression": "zlib", "predictor": 2},
    "lzma": {"compression": "lzma"},
    "lerc": {"compression": "lerc"},
    "webp": {"compression": "webp"},
    "jpegxl": {"compression": "jpegxl"},
    "jpeg2000": {"compression": "jpeg2000"},
    "jpegxr": {"compression": "jpegxr"},
    "jpeg": {"compression": "jpeg"},
    "subsampled jpeg": {"compression": "jpeg", "photometric": "ycbcr", "subsampling": (2, 1)},
}


@pytest.mark.parametrize("how", TIFFS)
def test_what_a_tiff_is_packed_with(how: str) -> None:
    source = tiff(picture(), **TIFFS[how])
    seen = tifffile.imread(io.BytesIO(source))
    assert np.array_equal(tifffile.imread(io.BytesIO(again(source, "a.tif"))), seen)


@pytest.mark.parametrize("options", [{}, {"tile": (32, 32)}])
def test_planes_of_a_tiff_with_alpha(options: dict[str, Any]) -> None:
    image = np.dstack([picture(), picture()[..., 0]])
    planes = np.ascontiguousarray(np.moveaxis(image, -1, 0))
    source = tiff(planes, planarconfig="separate", extrasamples=["unassalpha"], **options)
    assert np.array_equal(tifffile.imread(io.BytesIO(again(source, "a.tif"))), image)


def test_layers_of_photoshop_are_dropped() -> None:
    """A program that shows the layers would show the unrestored picture."""
    layers = (37724, 7, 30, b"Adobe Photoshop Document Data\0", True)
    source = tiff(picture(), extratags=[layers])
    assert "layers" in decode_photo(source, "a.tif").notes[0]
    assert b"Document Data" not in again(source, "a.tif")


def test_a_png_keeps_what_its_numbers_mean() -> None:
    chunks = {
        b"gAMA": struct.pack(">I", 100000),
        b"cHRM": struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000),
        b"cICP": bytes([12, 13, 0, 1]),
        b"mDCV": bytes(24),
        b"cLLI": bytes(8),
        b"pHYs": struct.pack(">IIB", 11811, 11811, 1),
        b"tEXt": b"Comment\0words",
        b"sBIT": bytes([8, 8, 8]),
        b"bKGD": bytes(6),
    }
    added = [chunk(kind, body) for kind, body in chunks.items()]
    source = with_chunks(coded("PNG", exif=exif_block()), *added, chunk(b"iDOT", bytes(28)))
    after = again(source, "a.png")
    for one in added:
        assert one in after
    assert b"iDOT" not in after  # Apple's offsets into the old data
    assert opened(after).info["exif"] == opened(source).info["exif"]
    assert np.array_equal(np.asarray(opened(after)), picture())


@pytest.mark.parametrize("lossless", [False, True])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_a_webp_keeps_its_kind(lossless: bool, mode: str) -> None:
    image = np.dstack([picture(), picture()[..., 0]]) if mode == "RGBA" else picture()
    options = {"icc_profile": SRGB, "exif": exif_block(), "xmp": b"<x/>"}
    source = coded("WEBP", image, mode, lossless=lossless, exact=True, **options)
    after = again(source, "a.webp")
    assert (b"VP8L" in after) == lossless
    assert opened(after).mode == mode
    for key in ("icc_profile", "exif", "xmp"):
        assert opened(after).info[key] == opened(source).info[key]
    if lossless:
        assert np.array_equal(np.asarray(opened(after)), image)


def test_alpha_of_a_webp_that_its_header_forgets() -> None:
    image = np.dstack([picture(), picture()[..., 0]])
    source = bytearray(coded("WEBP", image, "RGBA", lossless=True, exact=True, exif=exif_block()))
    source[20] &= ~0x10  # the flags of VP8X
    assert opened(source).mode == "RGBA"
    after = again(bytes(source), "a.webp")
    assert np.array_equal(np.asarray(opened(after)), image)


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compression", [None, "lzw", "zlib", "packbits", "zstd"])
def test_a_tiff_keeps_its_form_and_tags(big: bool, order: str, compression: str | None) -> None:
    tags = [
        (33723, "B", 12, b"\x1c\x02\x05\0\7a title", True),
        (700, "B", 12, b"<x>words</x>", True),
    ]
    tags += [(50000, "H", 3, (1, 2, 3), True), (315, "s", 0, "José".encode() + b"\0", True)]
    image = picture().astype(np.uint16) * 257
    source = tiff(
        image,
        file={"bigtiff": big, "byteorder": order},
        compression=compression,
        iccprofile=long_profile(),
        resolution=(300, 300),
        resolutionunit="inch",
        extratags=tags,
    )
    with tifffile.TiffFile(io.BytesIO(again(source, "a.tif"))) as file:
        old = tifffile.TiffFile(io.BytesIO(source)).pages[0]
        page: Any = file.pages[0]
        assert (file.is_bigtiff, file.byteorder) == (big, order)
        assert page.compression == old.compression
        assert np.array_equal(page.asarray(), image)
        for code in (33723, 700, 50000, 315, 34675, 282, 283, 296):
            assert page.tags[code].value == old.tags[code].value


@pytest.mark.parametrize("big", [False, True])
def test_exif_of_a_tiff_comes_back(big: bool, tmp_path: Path) -> None:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[34665] = {33434: 0.01, 36867: "2020:01:01 00:00:00", 37500: b"note" * 9}
    tags.tagtype[34665] = 4
    source = coded("TIFF", tiffinfo=tags, big_tiff=big)
    old, new = (opened(d).getexif().get_ifd(34665) for d in (source, again(source, "a.tif")))
    assert dict(old) == dict(new)
    assert new[37500] == b"note" * 9


# Depth, colour model, transparency


def test_a_transparent_key_becomes_alpha() -> None:
    grey = picture()[..., 0].copy()
    grey[10:20, 10:20] = 7
    for key, image in ((7, grey), ((7, 7, 7), np.dstack([grey] * 3))):
        source = coded("PNG", image, "L" if image.ndim == 2 else "RGB", transparency=key)
        before, after = (opened(d).convert("RGBA") for d in (source, again(source, "a.png")))
        assert np.array_equal(np.asarray(before)[..., 3], np.asarray(after)[..., 3])
    assert opened(again(coded("PNG", grey, "L", transparency=7), "a.png")).mode == "LA"


def test_sixteen_bits_with_a_key() -> None:
    image = picture().astype(np.uint16) * 257
    image[:9, :9] = (1, 2, 3)
    source = with_chunks(
        codecs.png.encode_plain(image), chunk(b"tRNS", struct.pack(">3H", 1, 2, 3))
    )
    found = decode_any(again(source, "a.png"), "a.png")
    assert (found.dtype, found.shape[2]) == (np.uint16, 4)
    assert not found[:9, :9, 3].any()
    assert (found[10:, 10:, 3] == 65535).all()


@pytest.mark.parametrize("mode", ["1", "P"])
def test_few_greys_and_palettes_are_widened_and_said(mode: str) -> None:
    source = coded("PNG", mode=mode)
    photo = decode_photo(source, "a.png")
    assert opened(encode_photo(photo, photo.rgb)).mode == {"1": "L", "P": "RGB"}[mode]
    assert re.search("written (as RGB|with 8)", photo.notes[0])


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_tiff_depths_between_are_scaled(bits: int) -> None:
    values = (picture().astype(np.uint32) * (2**bits - 1) // 255).astype(np.uint16)
    source = tiff(values, bitspersample=bits)
    photo = decode_photo(source, "a.tif")
    assert np.abs(photo.rgb / 65535 - values / (2**bits - 1)).max() < 1e-4
    assert f"{bits} bits" in photo.notes[0]
    page: Any = tifffile.TiffFile(io.BytesIO(encode_photo(photo, photo.rgb))).pages[0]
    assert page.bitspersample == 16


def test_ycbcr_of_a_tiff_is_converted() -> None:
    ycc = np.asarray(Pillow.fromarray(picture()).convert("YCbCr"))
    source = tiff(ycc, photometric="ycbcr")
    photo = decode_photo(source, "a.tif")
    assert np.abs(photo.rgb.astype(int) - picture()).max() <= 3  # Pillow truncates
    assert "YCbCr" in photo.notes[0]
    assert np.array_equal(np.asarray(opened(encode_photo(photo, photo.rgb))), photo.rgb)


def test_white_is_zero_is_seen_the_right_way_round() -> None:
    grey = picture()[..., 0]
    source = tiff(grey, photometric="miniswhite")
    assert np.array_equal(decode_photo(source, "a.tif").rgb[..., 0], 255 - grey)
    page: Any = tifffile.TiffFile(io.BytesIO(again(source, "a.tif"))).pages[0]
    assert page.photometric == tifffile.PHOTOMETRIC.MINISWHITE
    assert np.array_equal(page.asarray(), grey)


def png_of_rows(count: int, wrong: bool = False) -> bytes:
    """A PNG of 48 rows that holds the first ones, perhaps with a wrong checksum of the stream."""
    packed = bytearray(zlib.compress(b"".join(b"\0" + row.tobytes() for row in picture()[:count])))
    packed[-1] ^= wrong
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 64, 48, 8, 2, 0, 0, 0))
    return codecs.png.SIGNATURE + head + chunk(b"IDAT", bytes(packed)) + chunk(b"IEND", b"")


REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "cmyk.jpg": (lambda: coded("JPEG", mode="CMYK"), "CMYK"),
    "float.tif": (lambda: tiff(picture().astype(np.float32)), "floating-point"),
    "signed.tif": (lambda: tiff(picture().astype(np.int16)), "signed"),
    "deep.tif": (lambda: tiff(picture().astype(np.uint32)), "32-bit"),
    "bits.tif": (lambda: coded("TIFF", mode="1"), "1-bit"),
    "lab.tif": (lambda: tiff(picture(), photometric="cielab"), "cielab"),
    "subsampled.tif": (
        lambda: with_tag(tiff(picture(), photometric="ycbcr"), 530, ifd.Tag(3, 2, b"\2\0\2\0")),
        "YCbCr|can be read",
    ),
    "a.gif": (lambda: coded("GIF", mode="P"), "a GIF"),
    "a.bmp": (lambda: coded("BMP"), "a BMP"),
    "empty.jpg": (lambda: b"", "an empty file"),
    "text.png": (lambda: b"words", "another kind of file"),
    "half.jpg": (lambda: coded("JPEG")[:900], "cut off"),
    "cut.jpg": (lambda: coded("JPEG")[:-2], "cut off"),
    "progressive.jpg": (lambda: coded("JPEG", progressive=True)[:-200], "cut off|damaged"),
    "head.jpg": (lambda: coded("JPEG")[:100], "cut off"),
    "cut.png": (lambda: coded("PNG")[:-20], "no end"),
    "wrong.png": (lambda: bytes(b ^ (n == 90) for n, b in enumerate(coded("PNG"))), "checksum"),
    "cut.webp": (lambda: coded("WEBP")[:300], "cut off"),
    "cut.tif": (lambda: tiff(picture())[:5000], "cannot be read|can be read"),
    "._a.jpg": (lambda: b"\0\5\x16\7" + bytes(99), "AppleDouble"),
    "depths.tif": (
        lambda: tiff(picture()).replace(b"\x08\0\x08\0\x08\0", b"\x08\0\x08\0\x04\0", 1),
        "one depth",
    ),
    "pages.tif": (lambda: b"II*\0" + bytes(100), "no picture"),
    "five.tif": (
        lambda: tiff(np.dstack([picture()] * 2)[..., :5], extrasamples=["unassalpha", 0]),
        "5 colour channels",
    ),
    "checksum.png": (lambda: png_of_rows(48, wrong=True), "damaged PNG"),
    "rows.png": (lambda: png_of_rows(20), "damaged PNG"),
    "channels.tif": (
        lambda: with_tag(
            tiff(picture()[..., :2], photometric=1, extrasamples=[0]), 262, ifd.Tag(3, 1, b"\2\0")
        ),
        "rgb in 2 channels",
    ),
    "white.tif": (
        lambda: with_tag(tiff(picture()), 262, ifd.Tag(3, 1, b"\0\0")),
        "miniswhite in 3 channels",
    ),
    "pointer.jpg": (lambda: b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS"),
    "zeros.jpg": (lambda: bytes(5000), "zeros"),
    "video.heic": (lambda: b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom", "a video"),
    "bomb.svg": (lambda: b"<svg/>", "SVG"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_restored_says_why(name: str) -> None:
    make, reason = REFUSED[name]
    with pytest.raises(UserError, match=reason) as caught:
        decode_photo(make(), name)
    assert str(caught.value).startswith(f"{name}: ")
    assert "\n" not in str(caught.value)


def test_twelve_bit_jpegs_are_refused() -> None:
    source = bytearray(coded("JPEG"))
    place = source.find(b"\xff\xc0")
    source[place + 4] = 12
    with pytest.raises(UserError, match="12 bits"):
        decode_photo(bytes(source), "a.jpg")


# What is dropped is said


def test_what_a_png_loses_is_said() -> None:
    damaged = bytearray(chunk(b"eXIf", exif_block()[6:]))
    damaged[-1] ^= 1
    source = with_chunks(coded("PNG"), bytes(damaged)) + b"words" * 9
    notes = decode_photo(source, "a.png").notes
    assert notes == ["its damaged chunk eXIf is dropped", "45 bytes behind the picture are dropped"]
    assert b"words" not in again(source, "a.png")
    assert decode_photo(coded("WEBP") + b"words" * 9, "a.webp").notes == notes[1:]
    assert decode_photo(coded("PNG") + bytes(99), "a.png").notes == []


def test_a_key_of_another_length_is_none() -> None:
    for key in (b"", b"\1", b"\0\0\0"):
        source = with_chunks(coded("PNG", mode="L"), chunk(b"tRNS", key))
        assert decode_photo(source, "a.png").alpha is None


def test_a_profile_that_unpacks_to_gigabytes_is_none() -> None:
    packer = zlib.compressobj(9)
    packed = packer.compress(bytes(1 << 26)) + packer.flush()
    added = chunk(b"iCCP", b"name\0\0" + packed)
    source = with_chunks(coded("PNG"), added)
    assert codecs.decode(source, "a.png").icc == b""
    assert added in again(source, "a.png")


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("progressive", [False, True])
def test_damage_within_a_jpeg_is_said(progressive: bool, mode: str) -> None:
    """Such as of a card that was rescued: half the data, and an end marker."""
    whole = coded("JPEG", mode=mode, progressive=progressive, quality=98)
    photo = decode_photo(whole[: len(whole) * 2 // 3] + b"\xff\xd9", "a.jpg")
    assert "damaged (Corrupt JPEG data: premature end of data segment)" in photo.notes[0]
    assert decode_photo(whole, "a.jpg").notes == []
    tall = bytearray(whole)
    place = next(n for n in range(len(tall)) if tall[n : n + 2] in (b"\xff\xc0", b"\xff\xc2"))
    tall[place + 6] = 200  # rows that are not there
    assert "damaged" in decode_photo(bytes(tall), "a.jpg").notes[0]


def test_a_lossless_jpeg_says_that_it_will_not_be_one() -> None:
    import imagecodecs

    photo = decode_photo(imagecodecs.jpeg8_encode(picture(), lossless=True), "a.jpg")
    assert np.array_equal(photo.rgb, picture())
    assert "lossless" in photo.notes[0]


def test_a_photograph_names_no_video_that_is_dropped() -> None:
    body = (
        b'<rdf:Description GCamera:MotionPhoto="1" xmp:Rating="5" GCamera:MicroVideoOffset=\'99\'>'
        b"<Camera:MotionPhoto>1</Camera:MotionPhoto></rdf:Description>"
    )
    source = coded("JPEG", xmp=body) + b"\0\0\0\x18ftypmp42" + bytes(range(256))
    photo = decode_photo(source, "a.jpg")
    assert "a video" in photo.notes[0]
    xmp = opened(encode_photo(photo, photo.rgb)).info["xmp"]
    assert xmp == b'<rdf:Description xmp:Rating="5"></rdf:Description>'


def test_tiffs_that_do_not_say_their_colours() -> None:
    """What libtiff takes them for."""
    for image, colours in ((picture(), "rgb"), (picture()[..., 0], "minisblack")):
        source = bytearray(tiff(image, photometric=colours))
        (place,) = struct.unpack_from("<I", source, 4)
        entry = source.find(struct.pack("<HHI", 262, 3, 1), place)
        struct.pack_into("<H", source, entry, 263)  # another tag
        assert np.array_equal(decode_any(bytes(source), "a.tif"), image)
        assert np.array_equal(tifffile.imread(io.BytesIO(again(bytes(source), "a.tif"))), image)


@pytest.mark.parametrize("options", [{"rowsperstrip": 5}, {"tile": (16, 16)}])
@pytest.mark.parametrize("compression", [None, "lzw"])
def test_parts_of_a_tiff_that_cannot_be_found_are_not_black(
    options: dict[str, Any], compression: str | None
) -> None:
    source = tiff(picture(), compression=compression, **options)
    counts = 325 if "tile" in options else 279
    entries = {c: t for c, t in ifd.first_directory(source).items() if c != counts}
    out, form = bytearray(source), ifd.form_of(source)
    struct.pack_into(form.offset, out, form.inline, ifd.append_directory(out, form, entries))
    with pytest.raises(UserError, match=r"of its 1[02] strips or tiles, 1 can be found"):
        decode_photo(bytes(out), "a.tif")


@pytest.mark.parametrize("code", [529, 532])
@pytest.mark.parametrize("number", [(2**31, 1), (0, 0), (1, 2**31)])
def test_damaged_numbers_of_ycbcr_count_as_the_usual_ones(
    code: int, number: tuple[int, int]
) -> None:
    """With them, every pixel would be black, white or no number."""
    ycc = np.asarray(Pillow.fromarray(picture()).convert("YCbCr"))
    source, count = tiff(ycc, photometric="ycbcr"), 3 if code == 529 else 6
    source = with_tag(source, code, ifd.Tag(5, count, struct.pack("<2I", *number) * count))
    assert np.abs(decode_photo(source, "a.tif").rgb.astype(int) - picture()).max() <= 3


def test_a_photograph_below_its_thumbnail_is_the_one() -> None:
    """As cameras write it: the first directory has a thumbnail and all tags."""
    stream = io.BytesIO()
    with tifffile.TiffWriter(stream) as file:
        tags = [(271, "s", 0, "Maker", True), (274, "H", 1, 6, True)]
        file.write(picture()[::4, ::4], photometric="rgb", subfiletype=1, subifds=1, extratags=tags)
        file.write(picture(), photometric="rgb", metadata=None)
    photo = decode_photo(stream.getvalue(), "a.tif")
    assert np.array_equal(photo.rgb, picture())
    assert (photo.orientation, "thumbnails" in photo.notes[0]) == (6, True)
    assert opened(encode_photo(photo, photo.rgb)).getexif()[271] == "Maker"


def test_a_stack_of_imagej_in_one_directory_is_said() -> None:
    stream = io.BytesIO()
    tifffile.imwrite(stream, np.stack([picture()[..., 0]] * 5), imagej=True)
    source = bytearray(stream.getvalue())
    form = ifd.form_of(source)
    (place,) = struct.unpack_from(form.order + "I", source, 4)
    (entries,) = struct.unpack_from(form.order + "H", source, place)
    struct.pack_into("I", source, place + 2 + 12 * entries, 0)  # no further directory
    assert len(tifffile.TiffFile(io.BytesIO(source)).pages) == 1
    assert "first of its 5 pictures" in decode_photo(bytes(source), "a.tif").notes[0]


def test_what_comes_with_a_heif_is_said() -> None:
    import pillow_heif

    image = np.dstack([picture(), picture()[..., 0]])
    stream = io.BytesIO()
    pillow_heif.from_bytes("RGBA", (64, 48), image.tobytes()).save(stream, quality=95)
    alpha = b"urn:mpeg:hevc:2015:auxid:1"
    assert alpha in stream.getvalue()
    for other in (b"urn:com:apple:photo:202:ux", b"urn:mpeg:hevc:2015:auxid:2"):
        photo = decode_photo(stream.getvalue().replace(alpha, other), "a.heic")
        assert (photo.alpha, "depth map or gain map" in photo.notes[1]) == (None, True)
    assert len(decode_photo(stream.getvalue(), "a.heic").notes) == 1
    pictures = pillow_heif.from_pillow(Pillow.fromarray(picture()[::-1]))
    pictures.add_from_pillow(Pillow.fromarray(picture()))
    pictures.save(stream := io.BytesIO(), quality=95, primary_index=1)
    photo = decode_photo(stream.getvalue(), "a.heic")
    assert "only the primary of its 2 pictures" in photo.notes[1]
    assert np.abs(photo.rgb.astype(int) - picture()).mean() < 4


def test_white_of_a_heif_of_ten_bits_is_white() -> None:
    import pillow_heif

    stream = io.BytesIO()
    white = np.full((48, 64, 4), 65535, np.uint16)
    pillow_heif.encode("RGBA;16", (64, 48), white.tobytes(), stream, quality=-1)
    photo = decode_photo(stream.getvalue(), "a.heic")
    assert photo.rgb.dtype == np.uint16
    assert photo.rgb.min() == 65535
    assert photo.alpha is not None
    assert photo.alpha.min() == 65535


def test_want_of_memory_is_not_called_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    data = coded("PNG")
    said = MemoryError(), cv2.error("OpenCV(5.0) alloc.cpp: error: (-4:Insufficient memory)")
    for error in said:
        with monkeypatch.context() as patch:
            patch.setattr(cv2, "imdecode", Mock(side_effect=error))
            with pytest.raises(MemoryError):
                decode_photo(data, "a.png")


def test_pngs_beyond_what_their_decoders_read() -> None:
    data = bytearray(coded("PNG"))
    for width, height in ((1_000_001, 1), (33_000, 33_000)):
        struct.pack_into(">II", data, 16, width, height)
        struct.pack_into(">I", data, 29, zlib.crc32(data[12:29]))
        with pytest.raises(UserError, match=f"{width}x{height} pixels; at most"):
            codecs.size(bytes(data), "a.png")
    many = with_chunks(coded("PNG"), *[chunk(b"teXt", b"")] * ((1 << 20) + 1))
    with pytest.raises(UserError, match="more than 1,048,576 chunks"):
        decode_photo(many, "a.png")


def test_premultiplied_heif_becomes_plain() -> None:
    import pillow_heif

    alpha = np.full((48, 64, 1), 128, np.uint8)
    half = np.rint(picture() * (128 / 255)).astype(np.uint8)
    stream, image = io.BytesIO(), np.concatenate([half, alpha], axis=2)
    pillow_heif.from_bytes("RGBa", (64, 48), image.tobytes()).save(stream, quality=-1)
    photo = decode_photo(stream.getvalue(), "a.heic")
    assert np.abs(photo.rgb.astype(int) - picture()).mean() < 4


# Several pictures in one file


def test_thumbnails_first_are_passed_over() -> None:
    stream = io.BytesIO()
    with tifffile.TiffWriter(stream) as file:
        file.write(picture()[::4, ::4], photometric="rgb", subfiletype=1)
        file.write(picture(), photometric="rgb")
    photo = decode_photo(stream.getvalue(), "a.tif")
    assert np.array_equal(photo.rgb, picture())
    assert "thumbnails" in photo.notes[0]
    assert np.array_equal(tifffile.imread(io.BytesIO(encode_photo(photo, photo.rgb))), picture())


def animation(kind: str) -> bytes:
    frames = [Pillow.fromarray(image) for image in (picture(), picture()[::-1])]
    stream = io.BytesIO()
    frames[0].save(stream, kind, save_all=True, append_images=frames[1:])
    return stream.getvalue()


@pytest.mark.parametrize(("kind", "name"), [("PNG", "a.png"), ("WEBP", "a.webp"), ("MPO", "a.jpg")])
def test_only_the_first_picture_is_restored_and_said(kind: str, name: str) -> None:
    photo = decode_photo(animation(kind), name)
    assert "only the first" in photo.notes[0]
    after = opened(encode_photo(photo, photo.rgb))
    assert getattr(after, "n_frames", 1) == 1
    assert after.format == {"MPO": "JPEG"}.get(kind, kind)


def test_pages_of_a_tiff_are_said() -> None:
    photo = decode_photo(tiff(picture(), picture()), "a.tif")
    assert "only the first of its 2 pictures" in photo.notes[0]


def test_a_gain_map_is_dropped_and_is_no_profile() -> None:
    """As Ultra HDR has it: XMP and ISO 21496-1 in the first picture, the map behind it."""
    xmp = (
        b'<rdf:Description xmlns:hdrgm="http://ns.adobe.com/hdr-gain-map/1.0/" '
        b'hdrgm:Version="1.0" xmp:Rating="5"><Container:Directory><rdf:Seq/>'
        b"</Container:Directory></rdf:Description>"
    )
    iso = b"urn:iso:std:iso:ts:21496:-1\0\0\0\0\0"
    first = coded("JPEG", icc_profile=SRGB, xmp=xmp)
    first = first[:2] + b"\xff\xe2" + struct.pack(">H", len(iso) + 2) + iso + first[2:]
    gain_map = coded("JPEG", picture()[::4, ::4, 0], "L", icc_profile=long_profile())
    photo = decode_photo(first + gain_map, "a.jpg")
    assert "gain map" in photo.notes[0]
    after = encode_photo(photo, photo.rgb)
    assert opened(after).info["icc_profile"] == SRGB
    assert b"21496" not in after
    assert b"hdrgm:Version" not in after
    assert b"Container:Directory" not in after
    assert b'xmp:Rating="5"' in after


def test_what_hangs_behind_a_jpeg_is_said() -> None:
    photo = decode_photo(coded("JPEG") + b"\0\0\0\x18ftypmp42" + bytes(range(256)), "a.jpg")
    assert "bytes behind the picture" in photo.notes[0]
    assert not decode_photo(coded("JPEG") + bytes(500), "a.jpg").notes  # padding is nothing


# Tone curves


def test_srgb_itself_is_left_alone() -> None:
    for source in (
        coded("PNG"),
        coded("PNG", icc_profile=SRGB),
        coded("PNG", icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()),
        with_chunks(coded("PNG"), chunk(b"gAMA", struct.pack(">I", 45455))),
    ):
        photo = decode_photo(source, "a.png")
        assert photo.tone is None
        assert np.array_equal(photo.rgb, picture())


def linear(source: bytes, how: str) -> bytes:
    """The same file with a sign that its numbers are linear light."""
    signs = {
        "gAMA": chunk(b"gAMA", struct.pack(">I", 100000)),
        "cICP": chunk(b"cICP", bytes([1, 8, 0, 1])),
        "ICC": profile_chunk(curve_profile(1.0)),
    }
    return with_chunks(source, signs[how])


@pytest.mark.parametrize("how", ["gAMA", "cICP", "ICC"])
def test_linear_light_is_seen_as_srgb_and_comes_back(how: str) -> None:
    light = np.linspace(0, 65535, 48 * 64 * 3).reshape(48, 64, 3).astype(np.uint16)
    source = linear(codecs.png.encode_plain(light), how)
    photo = decode_photo(source, "a.png")
    assert np.abs(photo.rgb / 65535 - encode_srgb(light / 65535)).max() < 1e-4
    back = decode_any(encode_photo(photo, photo.rgb), "a.png")
    assert np.abs(back.astype(int) - light).max() <= 2


def test_the_curve_of_adobe_rgb() -> None:
    numbers = np.arange(256, dtype=np.uint8).reshape(1, 256, 1).repeat(3, axis=2)
    tone = tone_of(curve_profile(563 / 256), None, False, numbers.dtype)
    assert tone is not None
    seen = tone.to_srgb(numbers)
    assert np.abs(seen / 65535 - encode_srgb((numbers / 255) ** (563 / 256))).max() < 1e-4
    assert np.array_equal(tone.from_srgb(seen), numbers)


def test_adobe_rgb_by_exif_alone() -> None:
    values = Pillow.Exif()
    values.get_ifd(34665)[40961] = 65535
    values.get_ifd(34665)[40965] = {1: "R03"}
    assert decode_photo(coded("JPEG", exif=values), "a.jpg").tone is not None


def test_hdr_is_restored_with_a_word() -> None:
    photo = decode_photo(with_chunks(coded("PNG"), chunk(b"cICP", bytes([9, 16, 0, 1]))), "a.png")
    assert "HDR (PQ)" in photo.notes[0]


def test_a_damaged_profile_is_kept_and_ignored() -> None:
    source = coded("JPEG", icc_profile=b"no profile at all" * 20)
    photo = decode_photo(source, "a.jpg")
    assert photo.tone is None
    after = encode_photo(photo, photo.rgb)
    assert opened(after).info["icc_profile"] == b"no profile at all" * 20


def test_a_damaged_profile_is_no_damaged_picture() -> None:
    """A chunk that is there twice; damage of the scan is still seen."""
    source = coded("JPEG", icc_profile=SRGB)
    at = source.index(b"\xff\xe2")
    end = at + 2 + int.from_bytes(source[at + 2 : at + 4], "big")
    doubled = source[:end] + source[at:end] + source[end:]
    photo = decode_photo(doubled, "a.jpg")
    assert not photo.notes and np.array_equal(photo.rgb, decode_photo(source, "a.jpg").rgb)
    middle = (source.index(b"\xff\xda") + len(source)) // 2  # of the scan
    broken = source[:at] + source[at:end] * 2 + source[end:middle] + source[middle + 40 :]
    assert any("damaged (" in note for note in decode_photo(broken, "a.jpg").notes)


# Names


def curves(kind: bytes, *numbers: float) -> bytes:
    """A profile whose curves are tables (`curv`, of 16 bits) or `para`: its form and numbers."""
    if kind == b"curv":
        tag = struct.pack(">4s4xI", kind, len(numbers)) + np.array(numbers, ">u2").tobytes()
    else:
        form, *values = numbers
        tag = struct.pack(">4s4xHH", kind, int(form), 0)
        tag += b"".join(struct.pack(">i", round(value * 65536)) for value in values)
    rows = b"".join(struct.pack(">4sII", n, 168, len(tag)) for n in (b"rTRC", b"gTRC", b"bTRC"))
    return SRGB[:128] + struct.pack(">I", 3) + rows + tag


DAMAGED_CURVES = {
    "nothing": curves(b"curv", *[0] * 256),
    "the same for all": curves(b"curv", *[65535] * 256),
    "upside down": curves(b"curv", *range(65535, -1, -257)),
    "dark is lost": curves(b"curv", *[0] * 64, *range(0, 65472, 341)),
    "gamma 255": curves(b"curv", 65535),
    "division by zero": curves(b"para", 1, 2.2, 0, 0),
    "and of form 2": curves(b"para", 2, 2.2, 0, 0, 0),
    "a gamma below zero": curves(b"para", 3, -2.4, 1, 0, 0.1, 0.04),
    "no such form": curves(b"para", 9),
}


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("how", DAMAGED_CURVES)
def test_curves_without_a_way_back_change_no_pixel(how: str, dtype: type) -> None:
    image = picture().astype(dtype) * (np.iinfo(dtype).max // 255)
    source = with_chunks(codecs.png.encode_plain(image), profile_chunk(DAMAGED_CURVES[how]))
    after = again(source, "a.png")
    assert np.array_equal(decode_any(after, "a.png"), image)
    assert profile_chunk(DAMAGED_CURVES[how]) in after
    for gamma in (1, 2**32 - 1):
        source = with_chunks(
            codecs.png.encode_plain(image), gama := chunk(b"gAMA", struct.pack(">I", gamma))
        )
        assert gama in source and np.array_equal(decode_any(again(source, "a.png"), "a.png"), image)


@pytest.mark.parametrize("gamma", [1.0, 1.8, 2.2, 2.6, 3.0])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_real_curves_have_a_way_back(gamma: float, dtype: type) -> None:
    tone = tone_of(curve_profile(gamma), None, False, np.dtype(dtype))
    most = np.iinfo(dtype).max
    numbers = np.tile(np.arange(most + 1, dtype=dtype)[:, None, None], (1, 1, 3))
    back = numbers if tone is None else tone.from_srgb(tone.to_srgb(numbers))
    assert np.abs(back.astype(int) - numbers).max() <= 0.015 * most


def test_the_content_chooses_the_suffix() -> None:
    assert output_name("a.jfif", coded("JPEG")) == ("a.jfif", "")
    assert output_name("a.JPE", coded("JPEG")) == ("a.JPE", "")
    assert output_name("a.jpg", coded("PNG")) == (
        "a.png",
        "holds PNG, whatever its suffix says; written as a.png",
    )
    assert output_name("photo", coded("PNG"))[0] == "photo.png"
    assert output_name(".hidden", coded("PNG"))[0] == ".hidden.png"
    assert output_name("a.avif", coded("AVIF")) == ("a.png", "written as a.png")


def test_companions_pipes_and_folders_are_passed_over(tmp_path: Path) -> None:
    for name in ("a.png", "~t.png", "[x].png", "a b.png", "new\nline.png", "写真.png", ".hid.png"):
        (tmp_path / name).write_bytes(coded("PNG"))
    for name in ("._a.png", ".DS_Store", "Thumbs.db", "desktop.ini", "notes.txt"):
        (tmp_path / name).write_bytes(b"\0\5\x16\7")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    names = sorted(Path(file).name for file in expand([str(tmp_path)])[0])
    assert names == sorted(
        ["a.png", "~t.png", "[x].png", "a b.png", "new\nline.png", "写真.png", ".hid.png"]
    )
    with pytest.raises(UserError, match="no regular file"):
        expand([str(tmp_path / "pipe.png")])
    with pytest.raises(UserError, match="no regular file"):
        expand(["/dev/zero"])


def test_a_tilde_is_no_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "~x.png").write_bytes(coded("PNG"))
    assert expand(["~x.png"])[0] == [str(tmp_path / "~x.png")]
    (tmp_path / "folder").mkdir()
    (tmp_path / "again").symlink_to(".")
    spellings = ["~x.png", "./~x.png", "folder/../~x.png", "again/~x.png", str(tmp_path)]
    assert expand(spellings)[0] == [str(tmp_path / "~x.png")]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_upright_is_as_pillow_shows_it(orientation: int) -> None:
    values = Pillow.Exif()
    values[274] = orientation
    shown = ImageOps.exif_transpose(opened(coded("PNG", exif=values)))
    assert np.array_equal(upright(picture(), orientation), np.asarray(shown))


# Memory


def test_memory_is_planned_from_the_header() -> None:
    config = named_config("tiny")
    phone = Size(12240, 16320, 3, 1)
    assert plan(phone, 10**8, config, 3.0, **NOTHING_MORE).max_pixels > 256 * 256
    with pytest.raises(UserError, match=r"200 megapixels need about \S+ GB.*give it --memory 3"):
        plan(phone, 10**8, config, 1.0, **NOTHING_MORE)
    usual = plan(Size(3000, 4000, 3, 1), 10**7, config, 3.0, **NOTHING_MORE)
    # Two thirds, since the photograph itself needs little; less where freed memory is kept.
    assert usual.max_pixels == int(2e9 / memory.KEEPING / 808)
    little = plan(Size(300, 400, 3, 1), 10**5, config, 1.8, **NOTHING_MORE)
    assert little.max_pixels == int(1.2e9 / 808)


def test_freed_memory_is_kept_or_returned() -> None:
    """Page faults of a hundred large tensors, one after another, and what they leave."""
    program = """
import resource, sys, torch
from pipeline import freed_memory

faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
resident = lambda: int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
getattr(freed_memory, sys.argv[1])()
torch.ones(1 << 24)
before = faults()
for _ in range(100):
    torch.ones(1 << 24)
print(faults() - before)
freed_memory.trim()
print(resident())
freed_memory.trim(even_if_kept=True)
print(resident())
"""
    environment = {**os.environ, "THP_MEM_ALLOC_ENABLE": "0"}

    def measured(what: str) -> list[int]:
        command = [sys.executable, "-c", program, what]
        return list(map(int, subprocess.check_output(command, env=environment).split()))

    faults, kept, given_back = measured("keep")
    assert 5 * faults < measured("return_at_once")[0]
    assert kept - given_back > 0.9 * (1 << 26)  # bytes: at least one tensor


def test_photographs_are_restored_in_the_main_thread_with_memory_as_asked(
    trained: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.parallel_map.has_cluster", lambda: False)
    called = []
    for name in ("keep", "return_at_once"):
        monkeypatch.setattr(
            freed_memory, name, lambda name=name: called.append((name, threading.current_thread()))
        )
    (tmp_path / "a.png").write_bytes(coded("PNG"))
    for memory_gb in (1.9, 2.0):
        restore([str(tmp_path / "a.png")], str(tmp_path / "out"), trained, memory_gb=memory_gb)
    main = threading.main_thread()
    assert called == [("return_at_once", main), ("keep", main)]


@pytest.mark.full
def test_a_process_takes_no_more_memory_than_was_promised(tmp_path: Path) -> None:
    """A photograph in many tiles: the peak of a real process, and the network's share of it."""
    image = np.tile(picture(96, 128), (8, 10, 1))
    (tmp_path / "a.jpg").write_bytes(coded("JPEG", image, quality=95))
    command = [sys.executable, "-m", "pipeline", "restore", "a.jpg", "--out", "out"]
    command += ["--checkpoint", "photographs", "--memory", "0.5"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    environment.pop("RAY_ADDRESS", None)  # else a cluster would do the work
    # A small process between: the peak of a new process begins with its parent's memory.
    peak = "import resource as r, subprocess as s, sys; s.run(sys.argv[1:], check=True); "
    peak += "print(r.getrusage(r.RUSAGE_CHILDREN).ru_maxrss)"
    done = subprocess.run(
        [sys.executable, "-c", peak, *command],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        check=True,
    )
    # The program, the network's two thirds, and little for a small photograph.
    assert int(done.stdout.split()[-1]) * 1024 < (0.65 + 0.5 * 2 / 3 + 0.01) * 1e9


def test_markers_without_a_length_hide_no_size() -> None:
    """libjpeg passes over them; what a length would be there leads past the true header."""
    plain = coded("JPEG")
    for marker in (b"\xff\x01", b"\xff\xd0", b"\xff\xd7"):
        data = plain[:2] + marker + plain[2:]
        assert codecs.size(data, "a.jpg") == codecs.size(plain, "a.jpg")
        assert np.array_equal(codecs.decode(data, "a.jpg").pixels, picture_of(plain))
    for marker in (b"\xff\x00", b"\xff\xd8", b"\xff\xd9"):
        with pytest.raises(UserError, match="no picture follows"):
            codecs.size(plain[:2] + marker + plain[2:], "a.jpg")


def picture_of(data: bytes) -> np.ndarray:
    return codecs.decode(data, "a.jpg").pixels


def test_tiles_that_unpack_to_gigabytes_are_refused() -> None:
    stream = io.BytesIO()
    tifffile.imwrite(stream, np.zeros((16, 16, 3), np.uint8), tile=(8192, 4096), compression="zlib")
    with pytest.raises(UserError, match="tiles are larger than its picture"):
        codecs.size(stream.getvalue(), "a.tif")
    stream = io.BytesIO()
    tifffile.imwrite(stream, picture(), tile=(256, 256), compression="zlib")
    assert codecs.size(stream.getvalue(), "a.tif").height == len(picture())


def test_a_tile_with_a_larger_picture_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    large = np.zeros((512, 512, 3), np.uint8)
    tifffile.imwrite(path, large, tile=(512, 512), compression="jpeg", photometric="rgb")
    assert codecs.size(path.read_bytes(), "a.tif").width == 512
    with tifffile.TiffFile(path, mode="r+") as file:
        for name in ("ImageWidth", "ImageLength", "TileWidth", "TileLength"):
            file.pages[0].tags[name].overwrite(16)
    with pytest.raises(UserError, match="a tile holds a larger picture"):
        codecs.size(path.read_bytes(), "a.tif")


def test_pictures_too_wide_for_a_png_are_one_line() -> None:
    with pytest.raises(UserError, match="cannot be written as PNG"):
        encode_png(np.zeros((1, 1_000_001), np.uint8))


def test_a_bomb_is_refused_by_its_header() -> None:
    """A small file that would be 3 gigabytes of pixels."""
    header = struct.pack(">IIBBBBB", 32000, 32000, 8, 2, 0, 0, 0)
    source = codecs.png.SIGNATURE + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b""))
    found = codecs.size(source + chunk(b"IEND", b""), "a.png")
    with pytest.raises(UserError, match="1024 megapixels"):
        plan(found, 100, named_config("tiny"), 3.0, **NOTHING_MORE)


def test_directories_in_a_circle_are_read_once() -> None:
    """Each of 4096 pointers leads back to the directory, which took a time of the third power."""
    header = struct.pack("<2sHIH", b"II", 42, 8, 4096)
    for place in (8, 9):  # the directory itself, and something that is none
        rows = struct.pack("<HHII", ifd.EXIF, 4, 1, place) * 4095
        rows = struct.pack("<HHIHH", ifd.ORIENTATION, 3, 1, 6, 0) + rows
        assert ifd.read_exif(header + rows + bytes(4)).orientation == 6


def test_tags_that_overlap_take_no_memory() -> None:
    block = struct.pack("<2sHIH", b"II", 42, 8, 1000)
    block += b"".join(struct.pack("<HHII", 40000 + n, 7, 190_000, 8) for n in range(1000))
    tracemalloc.start()
    assert ifd.read_exif(block + bytes(200_000)).orientation == 1
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2e6
    # One such directory below costs no other tag.
    rows = struct.pack("<HHII", ifd.EXIF, 4, 1, 50)
    rows += struct.pack("<HHIHH", ifd.ORIENTATION, 3, 1, 6, 0)
    below = struct.pack("<H", 1000) + block[10:]
    whole = (struct.pack("<2sHIH", b"II", 42, 8, 2) + rows).ljust(50, b"\0") + below
    assert ifd.read_exif(whole + bytes(200_000)).orientation == 6


def test_a_jpeg_of_a_thousand_scans_is_refused() -> None:
    data = coded("JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    assert codecs.decode(data[:-2] + data[last:-2] * 100 + data[-2:], "a.jpg").pixels.size
    with pytest.raises(UserError, match=r"a\.jpg: damaged: more than 500 scans"):
        codecs.decode(data[:-2] + data[last:-2] * 1000 + data[-2:], "a.jpg")


@pytest.mark.timeout(60)
def test_padding_of_xmp_is_passed_over_quickly() -> None:
    """A packet's padding may fill a whole segment; a regular expression took a minute for one."""
    packets = [b"<x:xmpmeta>" + b" " * 60_000, b"<x:xmpmeta>" + b"<Container:Directory>" * 2900]
    source = coded("JPEG")
    for packet in packets:
        body = b"http://ns.adobe.com/xap/1.0/\0" + packet
        segment = struct.pack(">HH", 0xFFE1, len(body) + 2) + body
        written = again(source[:2] + segment * 4 + source[2:], "a.jpg")
        assert written.count(body) == 4


def test_a_chain_of_directories_ends() -> None:
    """A million pages of 18 bytes are no million pictures that have to be looked at."""
    first, chain = tiff(picture()), b""
    chain_at = len(first)
    for n in range(5000):
        following = chain_at + 18 * (n + 1) if n < 4999 else 0
        chain += struct.pack("<HHHII", 1, 254, 4, 1, 0) + struct.pack("<I", following)
    (place,) = struct.unpack_from("<I", first, 4)
    (tags,) = struct.unpack_from("<H", first, place)
    linked = bytearray(first + chain)
    struct.pack_into("<I", linked, place + 2 + 12 * tags, chain_at)
    photo = decode_photo(bytes(linked), "a.tif")
    assert "only the first of its 1000 pictures" in " ".join(photo.notes)
    assert np.array_equal(codecs.decode(again(bytes(linked), "a.tif"), "").pixels, picture())


@pytest.mark.parametrize("kind", ["ome", "imagej"])
def test_a_restored_stack_says_that_it_is_one_picture(kind: str) -> None:
    stream, stack = io.BytesIO(), np.stack([picture()[..., 0]] * 5)
    options: dict[str, Any] = {"imagej": True} if kind == "imagej" else {"ome": True}
    tifffile.imwrite(stream, stack, photometric="minisblack", **options)
    written = again(stream.getvalue(), "a.tif")
    assert tifffile.imread(io.BytesIO(written)).shape == stack.shape[1:]
    assert b"images=5" not in written and b"<OME" not in written


def test_a_background_of_another_depth_is_dropped() -> None:
    grey = with_chunks(coded("PNG", mode="L"), chunk(b"bKGD", b"\0\x80"))
    assert b"bKGD" in again(grey, "a.png")
    bits = np.packbits(picture()[..., 0] > 128, axis=1)
    header = struct.pack(">IIBBBBB", 64, 48, 1, 0, 0, 0, 0)
    rows = zlib.compress(b"".join(b"\0" + row.tobytes() for row in bits))
    chunks = [(b"IHDR", header), (b"bKGD", b"\0\1"), (b"IDAT", rows), (b"IEND", b"")]
    source = codecs.png.SIGNATURE + b"".join(chunk(*one) for one in chunks)
    assert b"bKGD" not in again(source, "a.png")  # white of 1 bit would be nearly black of 8


def test_a_tone_curve_and_pictures_beside_take_memory_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = []

    def recorded(size: Size, *arguments: Any, **options: Any) -> Any:
        planned.append((size.bytes_each, options["compare"]))
        return plan(size, *arguments, **options)

    monkeypatch.setattr("pipeline.restore.one.plan", recorded)
    monkeypatch.setattr("pipeline.parallel_map.has_cluster", lambda: False)
    (tmp_path / "a.jpg").write_bytes(coded("JPEG", icc_profile=curve_profile(1.0)))
    restore([str(tmp_path / "a.jpg")], str(tmp_path / "out"), compare=True)
    assert planned == [(1, True), (2, True)] * 2  # checked, then restored
    size, config = Size(3000, 4000, 3, 1), named_config("tiny")
    plain, beside = (
        plan(size, 10**7, config, 0.8, **{**NOTHING_MORE, "compare": compare})
        for compare in (False, True)
    )
    assert beside.max_pixels < plain.max_pixels


@pytest.mark.parametrize("kind", ["png", "tif"])
def test_encoding_takes_no_more_copies_than_planned(kind: str) -> None:
    """Beside the file, the decoded and the restored picture: one copy and what is written."""
    noise = np.random.default_rng(0).integers(0, 65536, (700, 700, 3), np.uint16)
    source = encode_png(noise) if kind == "png" else tiff(noise)
    photo, restored = decode_photo(source, f"a.{kind}"), noise.copy()
    tracemalloc.start()
    written = encode_photo(photo, restored)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2.2 * max(noise.nbytes, len(written))


def test_what_lies_in_the_folder_is_replaced_with_a_line(
    trained: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "out").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(coded("PNG"))
        (tmp_path / "out" / name).write_bytes(b"another picture")
    log = logging.getLogger("era")
    log.addHandler(caplog.handler)
    try:
        restore([str(tmp_path)], str(tmp_path / "out"), trained)
    finally:
        log.removeHandler(caplog.handler)
    assert "its a.png and 1 more will be replaced" in caplog.text


def test_a_network_that_gives_no_numbers_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights may be finite, and what they make of a picture not."""
    model = ErA(named_config("tiny", **FIELDS)).eval()
    for parameter in model.parameters():
        parameter.data.mul_(1e30)
    assert not restore_array(model, picture()).finite
    loaded = LoadedModel(model, model.config, {}, "runs/diverged")
    for name in ("one", "run"):
        monkeypatch.setattr(f"pipeline.restore.{name}.open_model", lambda url, device: loaded)
    for module in ("pipeline.parallel_map", "pipeline.restore.run"):
        monkeypatch.setattr(f"{module}.has_cluster", lambda: False)
    (tmp_path / "a.png").write_bytes(coded("PNG"))
    with pytest.raises(UserError, match="runs/diverged: this network's result is not finite"):
        restore(str(tmp_path / "a.png"), tmp_path / "out")
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_one_name_is_one_photograph(tmp_path: Path) -> None:
    """And not each of its characters, of which a dot is the current folder."""
    (tmp_path / "a.png").write_bytes(coded("PNG"))
    for given in (str(tmp_path / "a.png"), tmp_path / "a.png", [tmp_path / "a.png"]):
        assert expand(given) == ([str(tmp_path / "a.png")], [])


def test_photographs_for_a_gpu_are_checked_where_there_is_none(
    trained: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    (tmp_path / "a.png").write_bytes(coded("PNG"))
    job = run.RestoreJob(trained, str(tmp_path / "a.png"), "", 1.0, 1.0, 1.0, False, False, "cuda")
    assert run._check_one(job) == run._Done(name="a.png")
    assert "torch finds no CUDA device here" in run._restore_one(job).problem


@pytest.mark.parametrize("device", ["cuda", "tpu"])
def test_a_device_that_is_not_there_is_one_line(
    device: str, trained: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    words = "torch finds no CUDA device here" if device == "cuda" else "expected cpu or cuda"
    for cluster in [False, True] if device == "tpu" else [False]:
        for module in ("pipeline.parallel_map", "pipeline.restore.run"):
            monkeypatch.setattr(f"{module}.has_cluster", lambda answer=cluster: answer)
        (tmp_path / "a.png").write_bytes(coded("PNG"))
        with pytest.raises(UserError, match=f"--device {device}: {words}"):
            restore([str(tmp_path / "a.png")], str(tmp_path / "out"), trained, device=device)


def test_the_blur_estimated_in_parts_is_nearly_the_same() -> None:
    torch.manual_seed(1)
    model = ErA(named_config("tiny", **FIELDS)).eval()
    torch.nn.init.normal_(model.estimator.to_weights.weight, std=0.02)
    torch.nn.init.normal_(model.priors[0].tail.weight, std=0.02)
    image = np.tile(picture(96, 128), (8, 5, 1))
    options: dict[str, Any] = {"max_pixels": 300 * 300, "maps": True}
    whole = restore_array(model, image, **options)
    parts = restore_array(model, image, estimate_pixels=768 * 600, **options)
    assert parts.weights.shape == whole.weights.shape
    assert np.abs(parts.weights - whole.weights).max() < 0.02
    assert np.abs(parts.restored - whole.restored).max() < 1 / 255


# The verb


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> str:
    from pipeline.checkpoint import CheckpointStore

    torch.manual_seed(1)
    model = ErA(named_config("tiny", **FIELDS)).eval()
    folder = str(tmp_path_factory.mktemp("run"))
    store = CheckpointStore(folder)
    meta = {"step": 1, "model": model.config.to_dict()}
    state, scores = model.state_dict(), {"val/psnr": 1.0}
    store.save(step=1, model=state, training={}, meta=meta, files={}, metrics=scores)
    store.wait()
    return folder


def test_everything_is_refused_before_anything_is_restored(
    trained: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.png").write_bytes(coded("PNG"))
    (folder / "b.jpg").write_bytes(coded("PNG"))
    (folder / "z.jpg").write_bytes(coded("JPEG")[:-2])
    monkeypatch.setattr(logging.getLogger("era"), "propagate", True)
    with caplog.at_level(logging.INFO, logger="era"):
        done = restore([str(folder)], str(tmp_path / "out"), trained)
    assert (done["restored"], done["failed"]) == (2, 1)
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"a.png", "b.png"}
    lines = [record.message for record in caplog.records]
    refused = next(n for n, line in enumerate(lines) if "cut off" in line)
    assert refused < lines.index("restore: 2 of 2")
    assert refused < next(n for n, line in enumerate(lines) if line.startswith("restore:"))


def test_two_names_that_become_one_are_refused_in_time(trained: str, tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg"):
        (tmp_path / name).write_bytes(coded("PNG"))
    with pytest.raises(UserError, match=r"a\.png: both .*jpg and .*png would be written"):
        restore([str(tmp_path)], str(tmp_path / "out"), trained)
    assert not (tmp_path / "out").exists()


def test_what_opencv_cannot_allocate_is_one_photographs_fault(
    trained: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "in" / name).write_bytes(coded("PNG"))
    real = run.restore_photo

    def restored(job: Any, *rest: Any) -> Any:
        if job.input.endswith("a.png"):
            raise cv2.error("OpenCV: error: (-4:Insufficient memory) Failed to allocate 9 bytes")
        return real(job, *rest)

    monkeypatch.setattr("pipeline.parallel_map.has_cluster", lambda: False)
    monkeypatch.setattr(run, "restore_photo", restored)
    done = restore([str(tmp_path / "in")], str(tmp_path / "out"), trained)
    assert (done["restored"], done["failed"]) == (1, 1)


def test_names_without_a_suffix_have_pictures_of_their_own_beside_them(
    trained: str, tmp_path: Path
) -> None:
    (tmp_path / "in.v2").mkdir()
    for name in ("one", "two"):
        (tmp_path / "in.v2" / name).write_bytes(coded("PNG"))
    files = [str(tmp_path / "in.v2" / name) for name in ("one", "two")]
    done = restore(files, str(tmp_path / "out.v2"), trained, compare=True)
    assert done["restored"] == 2
    names = {path.name for path in (tmp_path / "out.v2").iterdir()}
    assert names == {"one.png", "one.compare.png", "two.png", "two.compare.png"}
    assert not list(tmp_path.glob("*.png"))


def test_one_wrong_argument_stops_no_other(trained: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(coded("PNG"))
    wrong = [str(tmp_path / ("b" * 300)), "nonsense://x/y.png", str(tmp_path / "gone.png"), ""]
    files, problems = expand([*wrong, str(tmp_path / "a.png")])
    assert files == [str(tmp_path / "a.png")]
    assert len(problems) == len(wrong)
    with pytest.raises(UserError, match="no such photograph"):
        expand(["/*.nonsense"])


def test_a_link_to_an_output_is_never_overwritten(trained: str, tmp_path: Path) -> None:
    for folder in ("in", "out"):
        (tmp_path / folder).mkdir()
    (tmp_path / "out" / "b.png").write_bytes(coded("PNG"))
    (tmp_path / "in" / "a.png").symlink_to(tmp_path / "out" / "b.png")
    (tmp_path / "in" / "b.png").write_bytes(coded("PNG"))
    with pytest.raises(UserError, match=r"b\.png there is the input .*a\.png"):
        restore([str(tmp_path / "in")], str(tmp_path / "out"), trained)


def test_outputs_that_cannot_be_written_are_refused_in_time(trained: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "out" / "a.png").mkdir(parents=True)
    (tmp_path / "in" / "a.png").write_bytes(coded("PNG"))
    with pytest.raises(UserError, match=r"out/a.png: is a folder"):
        restore([str(tmp_path / "in")], str(tmp_path / "out"), trained)
    (tmp_path / "in" / "a.png").rename(tmp_path / "in" / f"{'a' * 248}.png")
    with pytest.raises(UserError, match="too long for the name of a file"):
        restore([str(tmp_path / "in")], str(tmp_path / "other"), trained, compare=True)
    assert not (tmp_path / "other").exists()


def test_a_photograph_that_does_not_fit_is_one_line(trained: str, tmp_path: Path) -> None:
    big = np.zeros((6000, 6000), np.uint8)
    (tmp_path / "big.png").write_bytes(codecs.png.encode_plain(big))
    (tmp_path / "small.png").write_bytes(coded("PNG"))
    done = restore([str(tmp_path)], str(tmp_path / "out"), trained, memory_gb=0.3)
    assert (done["restored"], done["failed"]) == (1, 1)


def test_maps_and_comparison_are_upright(trained: str, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(coded("JPEG", exif=exif_block()))
    restore([str(tmp_path / "a.jpg")], str(tmp_path / "out"), trained, compare=True, maps=True)
    size = ImageOps.exif_transpose(opened((tmp_path / "out" / "a.jpg").read_bytes())).size
    assert size == (48, 64)
    assert cv2.imread(str(tmp_path / "out" / "a.radius.png")).shape[:2] == (64, 48)
    assert cv2.imread(str(tmp_path / "out" / "a.compare.png")).shape[:2] == (64, 96)


# What other libraries bring


def test_avif_is_read_with_what_belongs_to_it() -> None:
    source = coded("AVIF", quality=100, subsampling="4:4:4", exif=exif_block(), icc_profile=SRGB)
    photo = decode_photo(source, "a.avif")
    assert np.abs(photo.rgb.astype(int) - picture()).max() <= 4
    after = opened(encode_photo(photo, photo.rgb))
    assert (after.format, after.info["icc_profile"]) == ("PNG", SRGB)
    assert after.getexif()[271] == "Maker"


def test_deep_avif_keeps_its_depth() -> None:
    import imagecodecs

    deep = picture().astype(np.uint16) * 4
    source = imagecodecs.avif_encode(deep, level=100, bitspersample=10)
    photo = decode_photo(source, "a.avif")
    assert photo.rgb.dtype == np.uint16
    assert np.abs(photo.rgb / 65535 - deep / 1023).max() < 0.02


@pytest.mark.parametrize(
    ("kind", "head"),
    [
        ("HEIF", b"\0\0\0\x1cftypheic\0\0\0\0mif1heic"),
        ("JPEG XL", b"\0\0\0\x0cJXL \r\n\x87\n"),
        ("RAW", b"FUJIFILMCCD-RAW "),
    ],
)
def test_kinds_of_the_extra_say_its_name(
    kind: str, head: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.images import camera

    monkeypatch.setitem(camera.PLUGINS, kind, "no_such_package")
    with pytest.raises(UserError, match=rf"{kind} needs an extra: pip install .*\[photos\]"):
        decode_photo(head + bytes(100), "a.bin")


def test_heif_and_jpeg_xl_are_read_by_the_extra() -> None:
    import pillow_heif
    import pillow_jxl  # noqa: F401 # Pillow writes JPEG XL with it

    pillow_heif.register_heif_opener()
    values = Pillow.Exif()
    values[271] = "Maker"
    for kind, name in (("HEIF", "a.heic"), ("JXL", "a.jxl")):
        source = coded(kind, quality=95, exif=values.tobytes())
        photo = decode_photo(source, name)
        assert np.abs(photo.rgb.astype(int) - picture()).mean() < 4
        after = opened(encode_photo(photo, photo.rgb))
        assert (after.format, after.getexif()[271]) == ("PNG", "Maker")


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("kind", ["HEIF", "AVIF", "JPEG XL", "JPEG XL of a JPEG"])
def test_pictures_that_are_read_only_are_turned_once(kind: str, orientation: int) -> None:
    """What a viewer shows of the restored PNG stands as the photograph did; EXIF comes along."""
    import imagecodecs
    import pillow_heif

    pillow_heif.register_heif_opener()
    values = Pillow.Exif()
    values[274], values[271] = orientation, "Maker"
    jpeg = coded("JPEG", quality=98, subsampling=0, exif=values.tobytes())
    shown = np.asarray(ImageOps.exif_transpose(opened(jpeg)))
    if kind in ("HEIF", "AVIF"):
        source = coded(kind, quality=98, exif=values.tobytes())
    else:
        source = imagecodecs.jpegxl_encode_jpeg(jpeg)  # its codestream says how it is turned
        boxes = re.split(rb"(?s)(?=....(?:ftyp|jxlp|jbrd|brob))", source)
        if kind == "JPEG XL":  # not as a JPEG, but with pixels of its own
            source = b"".join(box for box in boxes if box[4:8] != b"jbrd")
    photo = decode_photo(source, "a")
    after = opened(encode_photo(photo, photo.rgb))
    turned = np.asarray(ImageOps.exif_transpose(after)).astype(int)
    assert turned.shape == shown.shape
    assert np.abs(turned - shown).mean() < 4
    assert after.getexif()[271] == "Maker"


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_jpeg_xl_keeps_its_depth(channels: int, dtype: type) -> None:
    import imagecodecs

    image = np.dstack([picture(), picture()[..., :1]])[..., :channels].squeeze()
    image = image.astype(dtype) * (np.iinfo(dtype).max // 255)
    assert np.array_equal(decode_any(imagecodecs.jpegxl_encode(image, lossless=True), "a"), image)


@pytest.mark.parametrize("container", [False, True])
@pytest.mark.parametrize("bits", [1, 5, 8, 9, 10, 12, 15, 16])
def test_jpeg_xl_of_any_depth_is_scaled(bits: int, container: bool) -> None:
    """Pillow's plugin gives 8 bits at full scale."""
    import imagecodecs

    dtype = np.uint8 if bits <= 8 else np.uint16
    image = np.rint(picture() / 255 * (2**bits - 1)).astype(dtype)
    options: dict[str, Any] = {"lossless": True, "bitspersample": bits, "usecontainer": container}
    source = imagecodecs.jpegxl_encode(image, **options)
    rgb = decode_any(source, "a.jxl")
    assert rgb.dtype == dtype
    error = np.abs(rgb / np.iinfo(dtype).max - image / (2**bits - 1)).max()
    assert error < (1 / 500 if bits < 8 else 1 / 60000)
    seen = np.asarray(opened(source).convert("RGB")).astype(float)
    assert np.abs(seen - rgb / (np.iinfo(dtype).max / 255)).max() <= 1


def test_gain_maps_that_are_dropped_are_said() -> None:
    import imagecodecs

    jxl = imagecodecs.jpegxl_encode(picture(), usecontainer=True)
    avif = imagecodecs.avif_encode(picture())
    item = b"infe" + bytes(8) + b"tmap"  # in a box that decoders pass over
    for name, plain, box in (
        ("a.jxl", jxl, struct.pack(">I4s", 12, b"jhgm") + bytes(4)),
        ("a.avif", avif, struct.pack(">I4s", 8 + len(item), b"free") + item),
    ):
        said = "its gain map is dropped"
        assert said in decode_photo(plain + box, name).notes
        assert said not in decode_photo(plain, name).notes


def test_metadata_of_a_jpeg_xl_is_unpacked_once() -> None:
    """A packed box of 50 bytes may hold 32 MB, and a file thousands of them."""
    import imagecodecs

    from pipeline.images.jpeg_xl import boxes

    body = b"Exif" + bytes(imagecodecs.brotli_encode(b"first"))
    again = b"Exif" + b"not packed at all"
    head = struct.pack(">I4s", 12, b"JXL ") + b"\r\n\x87\n"
    packed = [struct.pack(">I4s", 8 + len(each), b"brob") + each for each in (body, again)]
    parts = [struct.pack(">I4sI", 13, b"jxlp", number) + b"%d" % number for number in range(3)]
    found = boxes(head + b"".join([*packed, *parts]))
    assert (found["Exif"], found["jxlc"]) == (b"first", b"012")


@pytest.mark.parametrize("shape", [(1, 1), (8, 16), (48, 64), (40, 100), (513, 9), (30, 36)])
def test_the_header_of_a_jpeg_xl_says_its_size(shape: tuple[int, int]) -> None:
    """From the first bytes alone: a file of a few bytes may hold any number of pixels."""
    import imagecodecs

    image = np.resize(picture(), (*shape, 3))
    for container in (False, True):
        source = imagecodecs.jpegxl_encode(image, lossless=True, usecontainer=container)
        assert codecs.size(source, "a.jxl")[:2] == shape
        assert container or codecs.size(source[:20], "a.jxl")[:2] == shape


def test_pixels_of_many_gigabytes_are_refused_by_their_header() -> None:
    head = struct.pack(">IIBBBBB", 30_000, 30_000, 16, 2, 0, 0, 0)
    source = codecs.png.SIGNATURE + chunk(b"IHDR", head)
    source += chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    with pytest.raises(UserError, match=r"a.png: 30000x30000 pixels, 7 GB; at most 4 are read"):
        decode_any(source, "a.png")


def test_jpeg_xl_of_floating_point_is_refused_and_an_animation_said() -> None:
    import imagecodecs

    floats = imagecodecs.jpegxl_encode((picture() / 255).astype(np.float32), lossless=True)
    with pytest.raises(UserError, match="float32"):
        decode_photo(floats, "a.jxl")
    frames = np.stack([picture(), picture()[::-1]])
    source = imagecodecs.jpegxl_encode(frames, lossless=True, photometric="rgb", planar=False)
    photo = decode_photo(source, "a.jxl")
    assert np.array_equal(photo.rgb, picture())
    assert "only the first picture of its animation" in photo.notes[1]
    still = imagecodecs.jpegxl_encode(picture(), lossless=True)
    with pytest.raises(UserError, match="NEED_MORE_INPUT"):
        decode_photo(still[:-9], "a.jxl")
    assert len(decode_photo(still, "a.jxl").notes) == 1


def test_colours_of_hdr_without_a_profile_come_back() -> None:
    import imagecodecs

    deep = picture().astype(np.uint16) * 4
    options = {"bitspersample": 10, "primaries": 9, "transfer": 16, "matrix": 9}
    source = imagecodecs.avif_encode(deep, level=100, **options)
    photo = decode_photo(source, "a.avif")
    assert "HDR (PQ)" in photo.notes[1]
    assert chunk(b"cICP", bytes([9, 16, 0, 1])) in encode_photo(photo, photo.rgb)


def test_raw_photographs_are_developed() -> None:
    """A DNG of a colour filter array that holds the picture in linear light."""
    sharp = np.repeat(np.repeat(picture(96, 128), 2, axis=0), 2, axis=1) / 255
    light = np.where(sharp <= 0.04045, sharp / 12.92, ((sharp + 0.055) / 1.055) ** 2.4)
    filters = np.tile([[0, 1], [1, 2]], (96, 128))
    sensor = np.take_along_axis(light, filters[..., None], axis=2)[..., 0]
    # Of XYZ (D65) to linear sRGB: this camera sees as sRGB does.
    matrix = [32406, -15372, -4986, -9689, 18758, 415, 557, -2040, 10570]
    tags = [
        (50706, "B", 4, b"\1\4\0\0", True),
        (33421, "H", 2, (2, 2), True),
        (33422, "B", 4, b"\0\1\1\2", True),
        (50721, "2i", 9, [n for value in matrix for n in (value, 10000)], True),
        (50728, "2I", 3, [1] * 6, True),
        (50778, "H", 1, 21, True),
        (50717, "I", 1, 65535, True),
        (271, "s", 0, "Maker", True),
        (272, "s", 0, "Model", True),
    ]
    source = tiff((sensor * 65535).astype(np.uint16), photometric=32803, extratags=tags)
    photo = decode_photo(source, "a.tif")  # its content says that it is a DNG
    assert (photo.rgb.dtype, photo.rgb.shape) == (np.uint16, sharp.shape)
    assert np.corrcoef(photo.rgb.ravel(), sharp.ravel())[0, 1] > 0.98
    # In sRGB's curve: with another, dark tones would be a sixth off.
    dark = (sharp > 0.15) & (sharp < 0.35)
    assert np.median(photo.rgb[dark] / 65535 / sharp[dark]) == pytest.approx(1.0, abs=0.04)
    assert "RAW" in photo.notes[0]
    assert output_name("a.dng", source)[0] == "a.png"
    assert opened(encode_photo(photo, photo.rgb)).getexif()[271] == "Maker"


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (2, 3), (13, 17)])
def test_tiny_pictures_of_every_kind(size: tuple[int, int]) -> None:
    small = picture()[: size[0], : size[1]]
    for kind, suffix in (("PNG", "png"), ("JPEG", "jpg"), ("WEBP", "webp"), ("TIFF", "tif")):
        name = f"a.{suffix}"
        assert decode_any(again(coded(kind, small), name), name).shape == small.shape


@pytest.mark.full
def test_other_readers_agree(tmp_path: Path) -> None:
    """exiftool, pngcheck and tiffinfo read what is written, and find what was there."""
    kinds = {"a.jpg": "JPEG", "a.png": "PNG", "a.webp": "WEBP"}
    for name, kind in kinds.items():
        source = coded(kind, exif=exif_block(), icc_profile=SRGB)
        (tmp_path / name).write_bytes(again(source, name))
        found = subprocess.run(
            ["exiftool", "-validate", "-warning", "-make", "-orientation#", tmp_path / name],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        assert re.search(r"Make +: Maker", found)
        assert re.search(r"Orientation +: 6", found)
    subprocess.run(["pngcheck", "-q", tmp_path / "a.png"], check=True)
    (tmp_path / "a.tif").write_bytes(again(tiff(picture(), compression="lzw"), "a.tif"))
    done = subprocess.run(["tiffinfo", "-D", tmp_path / "a.tif"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.skipif(
    not HUGE_PAGES.exists() or "[madvise]" not in HUGE_PAGES.read_text(),
    reason="this kernel does not leave huge pages to programs",
)
def test_large_tensors_ask_for_huge_pages() -> None:
    """A page fault for each 4 KB that is touched would take a sixth of a restoration's time.

    Whether the kernel has huge pages to give depends on what else the machine does; so this reads
    what was asked for: the flag `hg` of the mapping.
    """
    program = """
import pipeline, re, torch
tensor = torch.ones(1 << 26)
for mapping in re.split(r"\\n(?=[0-9a-f]+-)", open("/proc/self/smaps").read()):
    first, end = (int(bound, 16) for bound in mapping.split()[0].split("-"))
    if first <= tensor.data_ptr() + (1 << 20) < end:
        print(" hg" in mapping.split("VmFlags:")[1])
"""

    def asked(**environment: str) -> str:
        command = [sys.executable, "-c", program]
        return subprocess.check_output(command, env={**os.environ, **environment}, text=True)

    assert asked() == "True\n"
    assert asked(THP_MEM_ALLOC_ENABLE="0") == "False\n"
