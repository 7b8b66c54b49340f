"""PNG: new pixels between the old file's own chunks.

What says how the numbers are to be read (iCCP, sRGB, gAMA, cHRM, cICP, mDCV, cLLI) and what
describes the file (eXIf, texts with XMP, pHYs) is copied byte for byte.
"""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np

from pipeline.arrays import Image
from pipeline.errors import UserError
from pipeline.images.ifd import Exif, read_exif
from pipeline.images.raster import Raster, Size

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GREY, RGB, PALETTE, GREY_ALPHA = 0, 2, 3, 4
# Unknown chunks whose last letter is lower case are safe to copy beside other pixels.
COPIED = (b"cHRM", b"gAMA", b"iCCP", b"sRGB", b"cICP", b"mDCV", b"cLLI", b"bKGD", b"sBIT", b"tIME")
OF_THE_PALETTE = (b"bKGD", b"sBIT")  # their meaning depends on the colour type
SRGB_GAMMA, GAMMA_TOLERANCE = 45455, 0.05
MOST_PIXELS, MOST_SIDE = 1 << 30, 1_000_000  # OpenCV's limit, libpng's limit
MOST_CHUNKS = 1 << 20  # of 8 KB each, as OpenCV writes them, for the largest file that is read
MOST_PROFILE = 1 << 25  # bytes of a profile that are unpacked
HDR_CICP = {16: "PQ", 18: "HLG"}
CICP_GAMMAS = {4: 2.2, 5: 2.8, 8: 1.0}
Chunks = list[tuple[bytes, bytes]]
Views = list[tuple[bytes, memoryview]]


def size(data: bytes, name: str) -> Size:
    """What the header says; a palette or a transparent colour counts as RGBA."""
    if len(data) < 33 or data[12:16] != b"IHDR":
        raise UserError(f"{name}: cut off or damaged: this PNG has no header")
    width, height, depth, colours = struct.unpack_from(">IIBB", data, 16)
    if max(width, height) > MOST_SIDE or width * height > MOST_PIXELS:
        raise UserError(
            f"{name}: {width}x{height} pixels; at most {MOST_PIXELS:,} of a PNG can be read, and "
            f"{MOST_SIDE:,} on a side"
        )
    return Size(height, width, 2 if colours in (GREY, GREY_ALPHA) else 4, 2 if depth == 16 else 1)


def decode(data: bytes, name: str) -> Raster:
    """Decode a PNG file.

    Raises:
        UserError: if it is cut off or damaged.
    """
    import cv2

    chunks, dropped = _read(data, name)
    width, height, depth, colours = struct.unpack(">IIBB", chunks[0][1][:10])
    found = dict(chunks)
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.shape[:2] != (height, width):
        raise UserError(f"{name}: damaged PNG data")
    if pixels.ndim == 3:
        order = cv2.COLOR_BGR2RGB if pixels.shape[2] == 3 else cv2.COLOR_BGRA2RGBA
        pixels = cv2.cvtColor(pixels, order)
    if colours in (GREY, GREY_ALPHA) and pixels.ndim == 3:
        pixels = pixels[..., [0, 3]] if pixels.shape[2] == 4 else pixels[..., 0]
    if colours == GREY and len(found.get(b"tRNS", b"")) == 2 and pixels.ndim == 2:
        pixels = _with_key(pixels, found[b"tRNS"], depth)
    exif = read_exif(found[b"eXIf"]) if b"eXIf" in found else Exif()
    notes = [*_notes(found, colours, depth), *dropped]
    icc = _icc(found)
    transfer = None if icc else _transfer(found)
    return Raster(pixels, exif.orientation, icc, transfer, notes)


def encode(pixels: Image, source: bytes) -> bytes:
    """Encode uint8 or uint16 pixels with all that belongs to the source file."""
    coded, _ = _walk(memoryview(encode_plain(pixels)), "")
    old, _ = _walk(memoryview(source), "")
    same_colours = old[0][1][8:10] == coded[0][1][8:10]  # depth and colour type
    before = old[: next(n for n, (kind, _) in enumerate(old) if kind == b"IDAT")]
    after = old[len(before) :]
    out = [coded[0], *_copied(before, same_colours)]
    out += [one for one in coded if one[0] == b"IDAT"]
    out += [*_copied(after, same_colours), (b"IEND", memoryview(b""))]
    stream = io.BytesIO(SIGNATURE)
    stream.seek(0, io.SEEK_END)
    for one in out:
        stream.write(chunk(*one))
    return stream.getvalue()


def encode_plain(pixels: Image) -> bytes:
    """Encode (H, W), (H, W, 2), (H, W, 3) RGB or (H, W, 4) RGBA, uint8 or uint16, as PNG."""
    import cv2

    if pixels.ndim == 3 and pixels.shape[2] == 2:  # OpenCV writes no grey with alpha
        import imagecodecs

        return bytes(imagecodecs.png_encode(np.ascontiguousarray(pixels), level=3))
    orders = {3: cv2.COLOR_RGB2BGR, 4: cv2.COLOR_RGBA2BGRA}
    bgr = cv2.cvtColor(pixels, orders[pixels.shape[2]]) if pixels.ndim == 3 else pixels
    try:
        done, data = cv2.imencode(".png", bgr)
    except cv2.error:
        done = False
    if not done:
        shape = "x".join(map(str, pixels.shape))
        raise UserError(f"an image of {shape} values of {pixels.dtype} cannot be written as PNG")
    del bgr  # which is as large as what is copied here
    return bytes(data)


def check(data: bytes, name: str) -> None:
    """Check the structure of a PNG file and the checksums of the chunks that the picture needs.

    Raises:
        UserError: if it is cut off or damaged.
    """
    _walk(memoryview(data), name)


def _read(data: bytes, name: str) -> tuple[Chunks, list[str]]:
    """(type, content) of all sound chunks, and what is said about others."""
    found, dropped = _walk(memoryview(data), name)
    return [(kind, bytes(body)) for kind, body in found], dropped


def _walk(data: memoryview, name: str) -> tuple[Views, list[str]]:
    """The same without a copy. A broken checksum in a chunk that the picture needs is refused."""
    import imagecodecs  # its crc32 is several times as fast as zlib's

    found: Views = []
    dropped: list[str] = []
    place = len(SIGNATURE)
    while place + 12 <= len(data):
        if len(found) > MOST_CHUNKS:
            raise UserError(f"{name}: more than {MOST_CHUNKS:,} chunks; no picture needs so many")
        size, kind = struct.unpack_from(">I4s", data, place)
        body = data[place + 8 : place + 8 + size]
        if place + 12 + size > len(data):
            break
        (wanted,) = struct.unpack_from(">I", data, place + 8 + size)
        checked = data[place + 4 : place + 8 + size]
        if imagecodecs.deflate_crc32(checked) == wanted:  # type: ignore[arg-type]
            found.append((kind, body))
        elif not kind[0] & 32:
            raise UserError(f"{name}: damaged: chunk {_shown(kind)} has a wrong checksum")
        else:
            dropped.append(f"its damaged chunk {_shown(kind)} is dropped")
        if kind == b"IEND":
            kinds = [kind for kind, _ in found]
            if kinds[0] != b"IHDR" or b"IDAT" not in kinds or len(found[0][1]) != 13:
                break
            if rest := bytes(data[place + 12 + size :]).strip(b"\0"):
                dropped.append(f"{len(rest)} bytes behind the picture are dropped")
            return found, dropped
        place += 12 + size
    raise UserError(f"{name}: cut off or damaged: this PNG has no end")


def _shown(kind: bytes) -> str:
    return kind.decode("ascii", "backslashreplace")


def chunk(kind: bytes, body: bytes | memoryview) -> bytes:
    """A chunk as bytes."""
    check = zlib.crc32(body, zlib.crc32(kind))
    return b"".join((struct.pack(">I", len(body)), kind, body, struct.pack(">I", check)))


def profile_chunk(icc: bytes) -> bytes:
    """An iCCP chunk as bytes."""
    return chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(icc))


def xmp_chunk(packet: bytes) -> bytes:
    """An XMP packet as an iTXt chunk, as bytes."""
    return chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + packet)


def with_chunks(png: bytes, *chunks: bytes) -> bytes:
    """A PNG file with more chunks behind its header."""
    head = len(SIGNATURE) + 25
    return png[:head] + b"".join(chunks) + png[head:]


def _copied(chunks: Views, same_colours: bool) -> Views:
    return [
        (kind, body)
        for kind, body in chunks
        if kind[0] & 32
        and (kind in COPIED or kind[3] & 32)
        and (same_colours or kind not in OF_THE_PALETTE)
    ]


def _with_key(grey: Image, key: bytes, depth: int) -> Image:
    """Grey with alpha: the key is the one transparent value, in the file's depth."""
    (value,) = struct.unpack(">H", key[:2])
    if depth < 8:
        value = value * 255 // (2**depth - 1)
    alpha = np.where(grey == value, 0, np.iinfo(grey.dtype).max).astype(grey.dtype)
    return np.dstack([grey, alpha])


def _icc(found: dict[bytes, bytes]) -> bytes:
    """The profile, where nothing of a higher rank (cICP) says what the colours are."""
    if len(found.get(b"cICP", b"")) == 4 or b"iCCP" not in found:
        return b""
    unpacker = zlib.decompressobj()
    try:
        profile = unpacker.decompress(found[b"iCCP"].partition(b"\0")[2][1:], MOST_PROFILE)
    except zlib.error:
        return b""
    return profile if unpacker.eof else b""


def _transfer(found: dict[bytes, bytes]) -> float | None:
    """The exponent of cICP or gAMA; None for sRGB and what is close to it."""
    if len(found.get(b"cICP", b"")) == 4:
        return CICP_GAMMAS.get(found[b"cICP"][1])
    if b"sRGB" in found or len(found.get(b"gAMA", b"")) != 4:
        return None
    (gamma,) = struct.unpack(">I", found[b"gAMA"])
    if not gamma or abs(gamma / SRGB_GAMMA - 1) <= GAMMA_TOLERANCE:
        return None
    return 100000 / float(gamma)


def _notes(found: dict[bytes, bytes], colours: int, depth: int) -> list[str]:
    notes = []
    if colours == PALETTE:
        notes.append("its palette cannot hold the restored colours; it is written as RGB")
    elif depth < 8:
        notes.append(f"{depth} bits cannot hold the restored greys; it is written with 8")
    if b"acTL" in found:
        notes.append("only the first picture of its animation is restored")
    curve = HDR_CICP.get(found[b"cICP"][1]) if len(found.get(b"cICP", b"")) == 4 else None
    if curve:
        notes.append(f"its colours are HDR ({curve}); the network was trained on sRGB")
    return notes
