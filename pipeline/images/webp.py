"""WebP: new pixels between the old file's own chunks (ICC, EXIF, XMP); lossless stays lossless."""

from __future__ import annotations

import io
import struct

import numpy as np

from pipeline.arrays import Image
from pipeline.errors import UserError
from pipeline.images.ifd import Exif, read_exif
from pipeline.images.raster import Raster, Size, open_with_pillow

QUALITY = 95
PIXELS = (b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF")
FLAGS = {b"ICCP": 0x20, b"EXIF": 0x08, b"XMP ": 0x04}
ALPHA = 0x10
Chunks = list[tuple[bytes, bytes]]


def size(data: bytes, name: str) -> Size:
    """What the header says."""
    with open_with_pillow(data) as file:
        return Size(file.height, file.width, 4, 1)


def decode(data: bytes, name: str) -> Raster:
    """Decode the first picture of a WebP file.

    Raises:
        UserError: if it is cut off or damaged.
    """
    chunks = _chunks(data, name)
    found = dict(chunks)
    with open_with_pillow(data) as file:
        pixels = np.asarray(file.convert("RGBA" if file.mode in ("RGBA", "RGBX") else "RGB"))
        count = int(getattr(file, "n_frames", 1))
    if pixels.shape[2] == 4 and not _has_alpha(found):
        pixels = pixels[..., :3]
    exif = read_exif(found[b"EXIF"]) if b"EXIF" in found else Exif()
    animated = f"only the first of its {count} pictures is restored; the others are dropped"
    notes = [animated] if count > 1 else []
    if rest := data[8 + struct.unpack_from("<I", data, 4)[0] :].strip(b"\0"):
        notes.append(f"{len(rest)} bytes behind the picture are dropped")
    return Raster(pixels, exif.orientation, found.get(b"ICCP", b""), None, notes)


def encode(pixels: Image, source: bytes) -> bytes:
    """Encode uint8 pixels (H, W, 3) or (H, W, 4) with all that belongs to the source file."""
    old = _chunks(source, "")
    kept = [(kind, body) for kind, body in old if kind not in PIXELS]
    coded = [c for c in _chunks(_encoded(pixels, _is_lossless(old)), "") if c[0] in PIXELS[1:]]
    if not kept and len(coded) == 1:
        return _file(coded)
    height, width = pixels.shape[:2]
    flags = sum(FLAGS.get(kind, 0) for kind in dict(kept)) | (ALPHA if pixels.shape[2] == 4 else 0)
    size = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    profile = [chunk for chunk in kept if chunk[0] == b"ICCP"]
    rest = [chunk for chunk in kept if chunk[0] != b"ICCP"]
    head = (b"VP8X", struct.pack("<I", flags) + size)
    return _file([head, *profile, *coded, *rest])


def _encoded(pixels: Image, lossless: bool) -> bytes:
    import cv2
    from PIL import Image as Pillow

    if lossless:
        stream = io.BytesIO()
        Pillow.fromarray(pixels).save(stream, "WEBP", lossless=True, exact=True)
        return stream.getvalue()
    order = cv2.COLOR_RGB2BGR if pixels.shape[2] == 3 else cv2.COLOR_RGBA2BGRA
    options = [cv2.IMWRITE_WEBP_QUALITY, QUALITY]
    done, coded = cv2.imencode(".webp", cv2.cvtColor(pixels, order), options)
    if not done:
        raise UserError(f"cannot write {pixels.shape} as WebP")
    return bytes(coded)


def _is_lossless(chunks: Chunks) -> bool:
    first = next((body for kind, body in chunks if kind == b"ANMF"), None)
    kinds = [kind for kind, _ in (chunks if first is None else _walk(first, 16))]
    return b"VP8L" in kinds


def _has_alpha(found: dict[bytes, bytes]) -> bool:
    """A lossless picture says it in a bit of its own header; VP8X says it of others."""
    if b"VP8L" in found:
        return bool(found[b"VP8L"][4] & 0x10)
    return b"VP8X" in found and bool(found[b"VP8X"][0] & ALPHA)


def _chunks(data: bytes, name: str) -> Chunks:
    (size,) = struct.unpack_from("<I", data, 4)
    if size + 8 > len(data):
        raise UserError(f"{name}: cut off: this WebP has {len(data)} of {size + 8} bytes")
    return _walk(data[: size + 8], 12)


def _walk(data: bytes, place: int) -> Chunks:
    found = []
    while place + 8 <= len(data):
        kind, size = struct.unpack_from("<4sI", data, place)
        found.append((kind, data[place + 8 : place + 8 + size]))
        place += 8 + size + size % 2
    return found


def _file(chunks: Chunks) -> bytes:
    body = b"".join(
        kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)
        for kind, data in chunks
    )
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body
