"""HEIF, AVIF, JPEG XL and raw photographs: read by Pillow's plugins and by LibRaw, written as PNG.

AVIF comes with Pillow; the others need the extra `photos`.
"""

from __future__ import annotations

import io
import re
import struct
from importlib import import_module
from typing import Any

import numpy as np

from pipeline.arrays import Image
from pipeline.errors import UserError
from pipeline.images import jpeg_xl
from pipeline.images.ifd import read_exif, with_orientation
from pipeline.images.png import CICP_GAMMAS, HDR_CICP
from pipeline.images.raster import Raster, Size, full_scale, open_with_pillow

PLUGINS = {"HEIF": "pillow_heif", "JPEG XL": "pillow_jxl", "RAW": "rawpy"}
HEAD_BYTES = 1 << 16  # in which AVIF's items are listed
WRITTEN = "is read only; its restored form is a PNG"
# Description, make, model, software, date, artist, copyright, EXIF, GPS.
RAW_TAGS = (270, 271, 272, 305, 306, 315, 33432, 34665, 34853)
TURNED = ("HEIF", "JPEG XL")  # their decoders turn the pixels upright, whatever EXIF says
SRGB_CURVE = (2.4, 12.92)  # exponent and slope of the toe; LibRaw's own is BT.709's
SRGB_CICP = (1, 2, 6, 13)  # transfer functions that photographs in sRGB are marked with


def camera_size(kind: str, data: bytes, name: str) -> Size:
    """What the header says, of 16 bits.

    Raises:
        UserError: if the extra that reads this kind is not installed.
    """
    plugin = _plugin(kind, name)
    if kind == "RAW":
        with plugin.imread(io.BytesIO(data)) as raw:
            return Size(raw.sizes.height, raw.sizes.width, 3, 2)
    if kind == "JPEG XL":  # whose plugin decodes what it opens
        header = jpeg_xl.read_header(data)
        return Size(header.height, header.width, 4, 2)
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
    return _jpeg_xl(data) if kind == "JPEG XL" else _avif(data)


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
    exif, xmp = (info.get("exif") or b"").removeprefix(b"Exif\0\0"), info.get("xmp") or b""
    if kind in TURNED:
        exif = with_orientation(exif, 1)
        xmp = re.sub(rb'(tiff:Orientation(?:="|>))\d', rb"\g<1>1", xmp)
    blocks = [png.encode_plain(pixels)]
    if info.get("icc_profile") and kind != "RAW":
        blocks.append(png.profile_chunk(info["icc_profile"]))
    elif code := _cicp(kind, source):
        blocks.append(png.chunk(b"cICP", bytes([*code, 0, 1])))
    if exif:
        blocks.append(png.chunk(b"eXIf", exif))
    if xmp:
        blocks.append(png.xmp_chunk(xmp))
    return png.with_chunks(*blocks)


def _cicp(kind: str, data: bytes) -> tuple[int, int] | None:
    """Primaries and transfer function of HEIF and AVIF (H.273), where they are not sRGB's."""
    place = data.find(b"colrnclx")
    if kind not in ("HEIF", "AVIF") or not 0 <= place < len(data) - 12:
        return None
    primaries, transfer = struct.unpack_from(">HH", data, place + 8)
    usual = primaries in (1, 2) and transfer in SRGB_CICP
    return None if usual or max(primaries, transfer) > 255 else (primaries, transfer)


def _raster(
    kind: str, data: bytes, pixels: Image, orientation: int, icc: bytes, count: int
) -> Raster:
    """Pixels of a kind that is not RAW, with what is said about them."""
    notes = [f"{kind} {WRITTEN}"]
    if count > 1:
        which = "primary" if kind == "HEIF" else "first"
        notes.append(f"only the {which} of its {count} pictures is restored")
    _, transfer = (not icc and _cicp(kind, data)) or (0, 0)
    if transfer in HDR_CICP:
        curve = HDR_CICP[transfer]
        notes.append(f"its colours are HDR ({curve}); the network was trained on sRGB")
    return Raster(pixels, orientation, icc, CICP_GAMMAS.get(transfer), notes)


def _raw(rawpy: Any, data: bytes) -> Raster:
    """Developed by LibRaw with the camera's white balance, sRGB of 16 bits, upright."""
    with rawpy.imread(io.BytesIO(data)) as raw:
        pixels = raw.postprocess(
            use_camera_wb=True, no_auto_bright=True, output_bps=16, gamma=SRGB_CURVE
        )
    return Raster(pixels, notes=[f"RAW is developed with the camera's settings; it {WRITTEN}"])


def _heif(plugin: Any, data: bytes) -> Raster:
    file = plugin.open_heif(io.BytesIO(data), convert_hdr_to_8bit=False)
    icc, pixels = file.info.get("icc_profile") or b"", np.asarray(file)
    if pixels.dtype == np.uint16:  # its bits are the upper ones
        bits = int(file.info.get("bit_depth") or 16)
        pixels = full_scale(pixels >> (16 - bits), bits)
    if file.mode.startswith("RGBa"):
        pixels = _divided_by_alpha(pixels)
    raster = _raster("HEIF", data, pixels, 1, icc, len(file))
    if file.info.get("aux") or file.info.get("depth_images"):
        raster.notes.append("its depth map or gain map is dropped")
    return raster


def _divided_by_alpha(pixels: Image) -> Image:
    """(H, W, 4) premultiplied to plain colours, which is what PNG holds."""
    most, alpha = np.iinfo(pixels.dtype).max, pixels[..., 3:].astype(np.float32)
    colours = np.minimum(np.rint(pixels[..., :3] * (most / np.maximum(alpha, 1))), most)
    return np.concatenate([colours.astype(pixels.dtype), pixels[..., 3:]], axis=2)


def _jpeg_xl(data: bytes) -> Raster:
    """The codestream says how the picture is turned, and its decoder does it; EXIF is not asked."""
    import imagecodecs

    header = jpeg_xl.read_header(data)
    pixels = imagecodecs.jpegxl_decode(data, index=0)  # its numbers have the codestream's depth
    with open_with_pillow(data) as file:
        icc = file.info.get("icc_profile") or b""
    if header.bits:
        pixels = full_scale(pixels, header.bits)
    raster = _raster("JPEG XL", data, pixels, 1, icc, 1)
    if "jhgm" in jpeg_xl.boxes(data):
        raster.notes.append("its gain map is dropped")
    if header.animated:
        raster.notes.append("only the first picture of its animation is restored")
    return raster


def _avif(data: bytes) -> Raster:
    """Pillow reads 8 bits, so that deeper pixels come from imagecodecs."""
    import imagecodecs

    with open_with_pillow(data) as file:
        mode = {"L": "L", "LA": "LA", "RGB": "RGB"}.get(file.mode, "RGBA")
        pixels = np.asarray(file.convert(mode))
        info, count = dict(file.info), int(getattr(file, "n_frames", 1))
    if (depth := _avif_depth(data)) > 8:
        pixels = full_scale(imagecodecs.avif_decode(data, index=0), depth)
    turn = read_exif(info.get("exif") or b"").orientation
    raster = _raster("AVIF", data, pixels, turn, info.get("icc_profile") or b"", count)
    if re.search(rb"(?s)infe.{8}tmap", data[:HEAD_BYTES]):
        raster.notes.append("its gain map is dropped")
    return raster


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
    if kind == "JPEG XL":
        with open_with_pillow(data) as file:
            profile = file.info.get("icc_profile")
        found = jpeg_xl.boxes(data)
        exif = re.search(rb"(?s)(?:II\*\0|MM\0\*).*", found.get("Exif", b""))
        block = exif.group() if exif else b""  # behind an offset, which some writers leave out
        return {"icc_profile": profile, "exif": block, "xmp": found.get("xml ")}
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
