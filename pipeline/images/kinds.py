"""The kind of a picture file: its content decides, never its name alone."""

from __future__ import annotations

SUFFIXES = {
    "PNG": (".png",),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "TIFF": (".tif", ".tiff"),
    "WebP": (".webp",),
    "AVIF": (".avif",),
    "HEIF": (".heic", ".heif", ".hif"),
    "JPEG XL": (".jxl",),
    "RAW": (".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2", ".pef", ".srw"),
}
WRITTEN = ("PNG", "JPEG", "TIFF", "WebP")  # kinds that are also written
IMAGE_SUFFIXES = tuple(suffix for kind in WRITTEN for suffix in SUFFIXES[kind])
PHOTO_SUFFIXES = tuple(suffix for kind in SUFFIXES.values() for suffix in kind)
HEADS = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL \r\n\x87\n": "JPEG XL",
    b"FUJIFILMCCD-RAW": "RAW",
    b"IIRO": "RAW",
    b"IIU\0": "RAW",
}
OTHERS = {  # kinds that are named in the refusal
    b"GIF8": "a GIF",
    b"BM": "a BMP",
    b"%PDF": "a PDF",
    b"8BPS": "a Photoshop file",
    b"\0\x05\x16\x07": "an AppleDouble companion file of macOS",
    b"\0\0\1\0": "an icon",
    b"v/1\1": "an OpenEXR file",
    b"\0\0\0\x0cjP  ": "a JPEG 2000 file",
    b"<svg": "an SVG drawing",
    b"<!DO": "a web page",
    b"<htm": "a web page",
    b"PK\3\4": "a ZIP archive",
    b"\xff\x4f\xff\x51": "a JPEG 2000 file",
    b"II\xbc": "a JPEG XR file",
    b"P5": "a PGM file",
    b"P6": "a PPM file",
    b"qoif": "a QOI file",
    b"DDS ": "a DDS texture",
    b"#?RADIANCE": "a Radiance HDR file",
    b"version https://git-lfs": "a pointer of Git LFS, not the file itself",
}
HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")


def kind_of(data: bytes, name: str) -> str:
    """PNG, JPEG, TIFF, WebP, AVIF, HEIF, JPEG XL or RAW; "" for anything else.

    Most RAW formats are TIFF files by their first bytes; for them the suffix decides.
    """
    kind = next((kind for head, kind in HEADS.items() if data.startswith(head)), "")
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        kind = "WebP"
    if data[4:8] == b"ftyp":
        brands = {data[8:12], *(data[n : n + 4] for n in range(16, min(data[3], 64), 4))}
        if brands & {b"avif", b"avis"}:
            kind = "AVIF"
        elif b"crx " in brands:
            kind = "RAW"
        elif brands & set(HEIF_BRANDS):
            kind = "HEIF"
    if kind == "TIFF" and (data[8:10] == b"CR" or name.lower().endswith(SUFFIXES["RAW"])):
        kind = "RAW"
    return kind


def other_kind(data: bytes) -> str:
    """What a file that is no supported picture seems to be, for a message."""
    if not data:
        return "an empty file"
    if not data.strip(b"\0"):
        return "a file of zeros"
    if data[4:8] == b"ftyp":
        return "a video or another kind of picture"
    return next((what for head, what in OTHERS.items() if data.startswith(head)), "")


def is_image_name(name: str, suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> bool:
    """Whether a file in a folder is meant as a picture: the companions of macOS are not."""
    return name.lower().endswith(suffixes) and not name.startswith("._")
