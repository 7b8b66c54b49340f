"""JPEG: new pixels between the old file's own segments.

Every APPn and comment segment (EXIF, XMP, ICC of any length, IPTC, JFIF with its resolution) is
copied byte for byte; chroma subsampling, grey, RGB and progressive coding are those of the source.
"""

from __future__ import annotations

import io
import re
import struct
from dataclasses import dataclass

import numpy as np

from pipeline.arrays import Image
from pipeline.errors import UserError
from pipeline.images.ifd import Exif, read_exif
from pipeline.images.raster import Raster, Size

QUALITY = 95
ADOBE_RGB = 563 / 256
APP0, APP1, APP2, APP14, APP15, COMMENT = 0xE0, 0xE1, 0xE2, 0xEE, 0xEF, 0xFE
START_OF_SCAN, START, END = 0xDA, 0xD8, 0xD9
LONE = {0x01, *range(0xD0, 0xD8)}  # markers without a length, which libjpeg passes over
FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
PROGRESSIVE, LOSSLESS = {0xC2, 0xCA}, {0xC3, 0xCB}
ICC, EXIF = b"ICC_PROFILE\0", b"Exif\0\0"
XMP = b"http://ns.adobe.com/xap/1.0/\0"
# Segments that describe pictures behind the first one, which are not written.
SECOND_PICTURES = (b"MPF\0", b"urn:iso:std:iso:ts:21496:-1\0")
XMP_OF_THEM = re.compile(
    rb"""(?<!\s)\s+(?:hdrgm:Version|G?Camera:(?:MotionPhoto|MicroVideo)\w*)=(?:"[^"]*"|'[^']*')"""
    rb"""|<(G?Camera:(?:MotionPhoto|MicroVideo)\w*)>[^<]*</\1>"""
    rb"""|<Container:Directory>(?:(?!<Container:Directory>).)*?</Container:Directory>""",
    re.DOTALL,
)
WARNINGS = ("Corrupt JPEG data", "Premature end", "Inconsistent progression")  # of libjpeg
IN_SCAN = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]", re.DOTALL)
MOST_SCANS = 500  # each one makes libjpeg go through the whole picture
SAMPLINGS = {(4, 1): 0x411111, (2, 2): 0x221111, (2, 1): 0x211111, (1, 2): 0x121111}
FULL_SAMPLING = 0x111111


@dataclass(frozen=True)
class _Frame:
    """Of the start-of-frame segment: sampling is the luma's, relative to the chroma's."""

    marker: int
    precision: int
    size: Size
    components: bytes
    sampling: tuple[int, int]


def size(data: bytes, name: str) -> Size:
    """What the header says."""
    return _frame(_segments(data, name)[0], name).size


def decode(data: bytes, name: str) -> Raster:
    """Decode the first picture of a JPEG file.

    Raises:
        UserError: for CMYK, 12 bits, or a file that is cut off.
    """
    segments, scan = _segments(data, name)
    frame = _frame(segments, name)
    if frame.precision != 8:
        raise UserError(f"{name}: {frame.precision} bits per channel; JPEG is supported with 8")
    if len(frame.components) not in (1, 3):
        raise UserError(f"{name}: colours are CMYK; RGB or grey is supported")
    end = _end(data, scan, name)
    pixels, damage = _pixels(_without_icc(data, segments, scan), len(frame.components) == 1)
    if pixels is None:
        raise UserError(f"{name}: damaged JPEG data")
    exif = next((read_exif(s) for m, s in segments if m == APP1 and s.startswith(EXIF)), Exif())
    icc = _icc(segments)
    transfer = ADOBE_RGB if exif.adobe_rgb and not icc else None
    notes = [*damage, *_notes(segments, data[end:])]
    if frame.marker in LOSSLESS:
        notes.append(f"its lossless coding is not written; it becomes JPEG of quality {QUALITY}")
    return Raster(pixels, exif.orientation, icc, transfer, notes)


def encode(pixels: Image, source: bytes) -> bytes:
    """Encode uint8 pixels (H, W) or (H, W, 3) with all that belongs to the source file."""
    old, _ = _segments(source, "")
    new, scan = _segments(coded := _encoded(pixels, _frame(old, ""), _is_rgb(old)), "")
    out = bytearray(b"\xff\xd8")
    for marker, body in old:
        if APP0 <= marker <= APP15 or marker == COMMENT:
            if (marker == APP14 and body.startswith(b"Adobe")) or body.startswith(SECOND_PICTURES):
                continue
            if marker == APP1 and body.startswith(XMP):
                body = XMP_OF_THEM.sub(b"", body)
            out += _segment(marker, body)
    for marker, body in new:
        if marker != APP0:
            out += _segment(marker, body)
    return bytes(out + coded[scan:])


def _without_icc(data: bytes, segments: list[tuple[int, bytes]], scan: int) -> bytes:
    """libjpeg calls a picture damaged whose profile is; what comes after it would go unseen."""
    kept = [(m, s) for m, s in segments if m != APP2 or not s.startswith(ICC)]
    if len(kept) == len(segments):
        return data
    return b"\xff\xd8" + b"".join(_segment(*one) for one in kept) + data[scan:]


def _pixels(data: bytes, grey: bool) -> tuple[Image | None, list[str]]:
    """What libjpeg decodes, None for nothing; and what it warns of.

    simplejpeg refuses what libjpeg warns of, and some rare samplings; OpenCV decodes both.
    """
    import cv2
    import simplejpeg

    try:
        pixels = simplejpeg.decode_jpeg(data, "GRAY" if grey else "RGB", strict=True)
        return pixels[..., 0] if grey else pixels, []
    except ValueError as error:
        reason = str(error)
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if decoded is not None and decoded.ndim == 3:
        decoded = cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)
    warned = reason.startswith(WARNINGS)
    return decoded, [f"damaged ({reason}); a part of it may be lost"] if warned else []


def _segments(data: bytes, name: str) -> tuple[list[tuple[int, bytes]], int]:
    """(marker, content) of the segments before the first scan, and where that begins."""
    found: list[tuple[int, bytes]] = []
    place = 2
    while place + 4 <= len(data):
        marker = data[place + 1]
        if data[place] != 0xFF:
            break
        if marker == 0xFF:  # a fill byte
            place += 1
            continue
        if marker == START_OF_SCAN:
            return found, place
        if marker in LONE:
            place += 2
            continue
        if marker in (0, START, END):
            break
        (size,) = struct.unpack_from(">H", data, place + 2)
        found.append((marker, data[place + 4 : place + 2 + size]))
        place += 2 + size
    raise UserError(f"{name}: cut off or damaged: no picture follows the header of this JPEG")


def _segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def _frame(segments: list[tuple[int, bytes]], name: str) -> _Frame:
    for marker, body in segments:
        if marker in FRAMES and len(body) >= 9:
            components = body[6 : 6 + 3 * body[5]]
            ids, factors = components[::3], [(c >> 4, c & 15) for c in components[1::3]]
            across, down = (
                max(1, factors[0][n] // max(1, max(f[n] for f in factors[1:] or factors)))
                for n in (0, 1)
            )
            height, width = struct.unpack_from(">HH", body, 1)
            shape = Size(height, width, len(ids), 1)
            return _Frame(marker, body[0], shape, ids, (across, down))
    raise UserError(f"{name}: cut off or damaged: this JPEG says no size")


def _end(data: bytes, place: int, name: str) -> int:
    """Where the first picture ends."""
    scans = 0
    while place + 4 <= len(data):
        scans += data[place + 1] == START_OF_SCAN
        if scans > MOST_SCANS:
            raise UserError(f"{name}: damaged: more than {MOST_SCANS} scans")
        (size,) = struct.unpack_from(">H", data, place + 2)
        found = IN_SCAN.search(data, place + 2 + size)
        if found is None:
            break
        if data[found.start() + 1] == END:
            return found.end()
        place = found.start()
    raise UserError(f"{name}: cut off: the end of the picture is missing")


def _is_rgb(segments: list[tuple[int, bytes]]) -> bool:
    """Whether the components are R, G, B themselves: libjpeg asks JFIF, Adobe, then the names."""
    if any(m == APP0 and s.startswith(b"JFIF\0") for m, s in segments):
        return False  # whatever Adobe's segment says
    adobe = [s for m, s in segments if m == APP14 and s.startswith(b"Adobe") and len(s) >= 12]
    return adobe[0][11] == 0 if adobe else _frame(segments, "").components == b"RGB"


def _encoded(pixels: Image, frame: _Frame, rgb: bool) -> bytes:
    import cv2
    from PIL import Image as Pillow

    progressive = frame.marker in PROGRESSIVE
    if rgb and pixels.ndim == 3:
        stream = io.BytesIO()
        Pillow.fromarray(pixels).save(
            stream, "JPEG", quality=QUALITY, keep_rgb=True, subsampling=0, progressive=progressive
        )
        return stream.getvalue()
    options = [cv2.IMWRITE_JPEG_QUALITY, QUALITY, cv2.IMWRITE_JPEG_PROGRESSIVE, int(progressive)]
    if pixels.ndim == 3:
        sampling = SAMPLINGS.get(frame.sampling, FULL_SAMPLING)
        options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, sampling]
        pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    done, coded = cv2.imencode(".jpg", pixels, options)
    if not done:
        raise UserError(f"cannot write {pixels.shape} as JPEG")
    return bytes(coded)


def _icc(segments: list[tuple[int, bytes]]) -> bytes:
    """The profile, put together from its numbered parts."""
    parts = {s[12]: s[14:] for m, s in segments if m == APP2 and s.startswith(ICC) and len(s) > 14}
    return b"".join(part for _, part in sorted(parts.items()))


def _notes(segments: list[tuple[int, bytes]], rest: bytes) -> list[str]:
    gain_map = any(s.startswith(SECOND_PICTURES[1]) for _, s in segments) or any(
        m == APP1 and b"hdrgm:" in s for m, s in segments
    )
    if gain_map:
        return ["its gain map (Ultra HDR) is dropped: it belongs to the unrestored picture"]
    if any(s.startswith(SECOND_PICTURES[0]) for _, s in segments) or b"\xff\xd8\xff" in rest[:64]:
        return ["only the first of its pictures is restored; the others are dropped"]
    if len(rest.strip(b"\0\r\n")) > 64:
        return [f"{len(rest)} bytes behind the picture (a video, a maker's data) are dropped"]
    return []
