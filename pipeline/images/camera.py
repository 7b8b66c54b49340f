"""HEIF, AVIF, JPEG XL and raw photographs: read by Pillow's plugins and by LibRaw, written as PNG.

AVIF comes with Pillow; the others need the extra `photos`.
"""

from __future__ import annotations

import io
import struct
from importlib import import_module
from typing import Any

import numpy as np

from pipeline.arrays import Image
from pipeline.errors import UserError
from pipeline.images.ifd import read_exif
from pipeline.images.raster import Raster, Size, open_with_pillow

PLUGINS = {"HEIF": "pillow_heif", "JPEG XL": "pillow_jxl", "RAW": "rawpy"}
WRITTEN = "is read only; its restored form is a PNG"
# Description, make, model, software, date, artist, copyright, EXIF, GPS.
RAW_TAGS = (270, 271, 272, 305, 306, 315, 33432, 34665, 34853)


def camera_size(kind: str, data: bytes, name: str) -> Size:
    """What the header says, of 16 bits.

    Raises:
        UserError: if the extra that reads this kind is not installed.
    """
    plugin = _plugin(kind, name)
    if kind == "RAW":
        with plugin.imread(io.BytesIO(data)) as raw:
            return Size(raw.sizes.height, raw.sizes.width, 3, 2)
    file = plugin.open_heif(io.BytesIO(data)) if kind == "HEIF" else open_with_pillow(data)
    return Size(file.size[1], file.size[0], 4, 2)


def decode_camera(kind: str, data: bytes, name: str) -> Raster:
    """Decode a picture of a kind that is read only, upright.

    Raises:
        UserError: if it is damaged, or the extra that reads it is not installed.
    """
    plugin = _plugin(kind, name)
    if kind == "RAW":
        return _raw(plugin, data)
    if kind == "HEIF":
        return _heif(plugin, data)
    return _pillow(kind, data)


def _plugin(kind: str, name: str) -> Any:
    if kind not in PLUGINS:
        return None
    try:
        return import_module(PLUGINS[kind])
    except ImportError:
        raise UserError(
            f"{name}: {kind} needs an extra: pip install 'era-deblurring[photos]'"
        ) from None


def encode_camera(kind: str, pixels: Image, source: bytes) -> bytes:
    """Encode pixels as PNG with the source's profile, EXIF and XMP."""
    from pipeline.images import png

    info = _info(kind, source)
    blocks = [png.encode_plain(pixels)]
    if info.get("icc_profile") and kind != "RAW":
        blocks.append(png.profile_chunk(info["icc_profile"]))
    if info.get("exif"):
        blocks.append(png.chunk(b"eXIf", info["exif"].removeprefix(b"Exif\0\0")))
    if info.get("xmp"):
        blocks.append(png.xmp_chunk(info["xmp"]))
    return png.with_chunks(*blocks)


def _raw(rawpy: Any, data: bytes) -> Raster:
    """Developed by LibRaw with the camera's white balance, sRGB of 16 bits, upright."""
    with rawpy.imread(io.BytesIO(data)) as raw:
        pixels = raw.postprocess(use_camera_wb=True, no_auto_bright=True, output_bps=16)
    return Raster(pixels, notes=[f"RAW is developed with the camera's settings; it {WRITTEN}"])


def _heif(plugin: Any, data: bytes) -> Raster:
    file = plugin.open_heif(io.BytesIO(data), convert_hdr_to_8bit=False)
    pixels = np.asarray(file)
    notes = [f"HEIF {WRITTEN}"]
    if len(file) > 1:
        notes.append("only its primary picture is restored")
    return Raster(pixels, 1, file.info.get("icc_profile") or b"", None, notes)


def _pillow(kind: str, data: bytes) -> Raster:
    """AVIF and JPEG XL; Pillow reads 8 bits, so that deeper pixels come from imagecodecs."""
    import imagecodecs

    with open_with_pillow(data) as file:
        mode = {"L": "L", "LA": "LA", "RGB": "RGB"}.get(file.mode, "RGBA")
        pixels = np.asarray(file.convert(mode))
        info, count = dict(file.info), int(getattr(file, "n_frames", 1))
    if kind == "AVIF" and (depth := _avif_depth(data)) > 8:
        deep = imagecodecs.avif_decode(data)
        pixels = (deep.astype(np.uint32) * 65535 // (2**depth - 1)).astype(np.uint16)
    elif kind == "JPEG XL":
        deep = imagecodecs.jpegxl_decode(data)
        pixels = deep if deep.dtype == np.uint16 and deep.shape == pixels.shape else pixels
    notes = [f"{kind} {WRITTEN}"]
    if count > 1:
        notes.append(f"only the first of its {count} pictures is restored")
    exif = read_exif(info.get("exif") or b"")
    return Raster(pixels, exif.orientation, info.get("icc_profile") or b"", None, notes)


def _avif_depth(data: bytes) -> int:
    """Bits per channel, from the configuration of AV1 (`av1C`: high_bitdepth, twelve_bit)."""
    place = data.find(b"av1C")
    flags = data[place + 6] if 0 <= place < len(data) - 6 else 0
    return (12 if flags & 0x20 else 10) if flags & 0x40 else 8


def _info(kind: str, data: bytes) -> dict[str, Any]:
    """Profile, EXIF and XMP of a file that was decoded before."""
    if kind == "RAW":
        return {"exif": _exif_of_raw(data)}
    if kind == "HEIF":
        file = import_module(PLUGINS[kind]).open_heif(io.BytesIO(data))
        return dict(file.info)
    with open_with_pillow(data) as opened:
        return {str(key): value for key, value in opened.info.items()}


def _exif_of_raw(data: bytes) -> bytes:
    """Who, when and how of a raw file that is built like a TIFF; the orientation is applied."""
    from pipeline.images import ifd

    try:
        form = ifd.form_of(data)
        directory = ifd.first_directory(data)
    except (ValueError, struct.error):
        return b""
    kept = {code: tag for code, tag in directory.items() if code in RAW_TAGS}
    out = bytearray(data[:4] + bytes(form.inline))
    place = ifd.append_directory(out, form, kept)
    struct.pack_into(form.offset, out, form.inline, place)
    return bytes(out)
