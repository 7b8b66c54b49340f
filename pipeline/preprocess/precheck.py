"""Checks before anything is written: headers, checksums, hashes, sizes, duplicates."""

from __future__ import annotations

import hashlib
import io
import statistics
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pipeline import storage
from pipeline.errors import StorageDown, UserError
from pipeline.images import png
from pipeline.metrics import LEAST_SIDE
from pipeline.parallel_map import parallel_map
from pipeline.preprocess.layouts import Layout, Pair, base_of
from pipeline.progress import track

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile

TIFF_BITS = 258  # the tag BitsPerSample
EXIF_ORIENTATION = 274
WITHOUT = "take it out of the source, or go on with the same command where there is more"
ROOMY = 192  # pixels: the largest training crop of the packaged configurations


@dataclass(frozen=True)
class Header:
    """A picture file's header and digest; `orientation` is EXIF's, 1 if upright or unknown."""

    width: int
    height: int
    channels: int
    bits: int
    bytes: int
    sha256: str
    orientation: int = 1


@dataclass(frozen=True)
class Problem:
    """A fault of one pair of a split, or of the whole split if the key is empty.

    It is that of `pair` alone where that is given, else of all pairs with this key.
    """

    split: str
    key: str
    text: str
    pair: Pair | None = None


@dataclass
class Inspection:
    """All headers by relative name, and every problem that was found."""

    headers: dict[str, Header] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


@dataclass(frozen=True)
class _Job:
    base: str
    name: str


def precheck(source: str, layout: Layout) -> Inspection:
    """Check every file of every split; problems are collected, never raised."""
    splits = layout.splits
    paired = {name for pairs in splits.values() for pair in pairs for name in pair.files}
    names = sorted(paired.union(*layout.unpaired.values()))
    jobs = [_Job(base_of(source), name) for name in names]
    found = Inspection(problems=[Problem(*problem) for problem in layout.problems])
    unreadable: dict[str, str] = {}
    for index, result in track(parallel_map(_look, jobs), len(jobs), "precheck"):
        if isinstance(result, Header):
            found.headers[names[index]] = result
        else:
            unreadable[names[index]] = result
    found.problems += [
        Problem(split, "", unreadable[name])
        for split, files in layout.unpaired.items()
        for name in files
        if name in unreadable
    ]
    for split, pairs in splits.items():
        found.problems += [
            Problem(split, pair.key, text, pair)
            for pair in pairs
            for text in _wrong_with(pair, found.headers, unreadable)
        ]
        found.problems += _equal_keys(split, pairs)
    found.problems += _too_small(splits.get("train", []), found.headers)
    found.problems += _duplicates(splits, found.headers)
    return found


def _look(job: _Job) -> Header | str:
    """A file's header, or the reason why it cannot be used."""
    from PIL import Image, UnidentifiedImageError

    Image.MAX_IMAGE_PIXELS = None  # no picture is decoded here, and large ones are no bombs
    url = storage.join(job.base, job.name)
    try:
        data = storage.read_bytes(url)
    except StorageDown:
        raise
    except UserError as error:
        return str(error)
    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
            channels, bits = len(image.getbands()), _bits(image, data)
            orientation = _orientation(image)
            if image.format in ("JPEG", "MPO"):
                image.draft(None, (-(-width // 8), -(-height // 8)))  # all data, at an eighth
                image.load()
            elif image.format == "PNG":
                png.check(data, url)
            else:
                image.verify()
    except MemoryError:
        raise UserError(f"{url}: not enough memory to check it; {WITHOUT}") from None
    except Exception as error:  # Pillow raises many kinds for a broken file
        reason = "" if isinstance(error, UnidentifiedImageError) else f" ({error})"
        return f"{url}: not an image that can be read, or a damaged one{reason}"
    digest = hashlib.sha256(data).hexdigest()
    return Header(width, height, channels, bits, len(data), digest, orientation)


def _bits(image: ImageFile, data: bytes) -> int:
    """Bits per channel in the file; Pillow itself reads 16-bit RGB as 8."""
    if image.format == "PNG":
        return data[24]
    if image.format == "TIFF":
        return max(image.tag_v2.get(TIFF_BITS, (1,)))  # type: ignore[attr-defined]
    return 8


def _orientation(image: ImageFile) -> int:
    from PIL import Image

    try:
        # Not the method of a PNG, which would decode all pixels to look behind them.
        return int(Image.Image.getexif(image).get(EXIF_ORIENTATION, 1))
    except Exception:  # damaged EXIF does not make a picture unusable
        return 1


def _wrong_with(
    pair: Pair, headers: dict[str, Header], unreadable: dict[str, str]
) -> Iterable[str]:
    bad = [unreadable[name] for name in pair.files if name in unreadable]
    if bad:
        return bad
    blur = headers[pair.blur]
    problems = []
    if min(blur.width, blur.height) < LEAST_SIDE:
        problems.append(
            f"{pair.blur} has {blur.width}x{blur.height} pixels; at least {LEAST_SIDE} on each "
            "side are needed"
        )
    for name in pair.files:
        other = headers[name]
        if (other.width, other.height) != (blur.width, blur.height):
            problems.append(
                f"{name} has {other.width}x{other.height} pixels, {pair.blur} has "
                f"{blur.width}x{blur.height}: not a pair"
            )
        wanted = 1 if name == pair.radius else 3
        if other.channels != wanted:
            problems.append(f"{name} has {other.channels} channels instead of {wanted}")
    if pair.sharp is not None:
        if headers[pair.sharp].sha256 == blur.sha256:
            problems.append(f"{pair.sharp} is the same file as {pair.blur}")
        if headers[pair.sharp].bits != blur.bits:
            problems.append(f"{pair.sharp} and {pair.blur} have different bit depths")
        if headers[pair.sharp].orientation != blur.orientation:
            problems.append(
                f"{pair.sharp} and {pair.blur} have different EXIF orientations "
                f"({headers[pair.sharp].orientation} and {blur.orientation}): save both upright"
            )
    return problems


def _equal_keys(split: str, pairs: list[Pair]) -> Iterable[Problem]:
    seen: dict[str, str] = {}
    for pair in pairs:
        if pair.key in seen:
            text = f"{pair.blur} and {seen[pair.key]} would both be called {pair.key}"
            yield Problem(split, pair.key, text, pair)
        seen.setdefault(pair.key, pair.blur)


def _too_small(pairs: list[Pair], headers: dict[str, Header]) -> Iterable[Problem]:
    """Training pictures far smaller than the others: a batch has crops of one size, so the smallest
    picture limits the crops of all."""
    sides = {
        pair: min(headers[pair.blur].width, headers[pair.blur].height)
        for pair in pairs
        if pair.blur in headers
    }
    median = statistics.median(sides.values()) if sides else 0
    for pair, side in sides.items():
        if side < ROOMY and side < median / 2:
            header = headers[pair.blur]
            text = (
                f"{pair.blur} has {header.width}x{header.height} pixels, less than half of what "
                f"is usual here ({median:.0f} on the shorter side): every training crop would be "
                "cut down to its size"
            )
            yield Problem("train", pair.key, text, pair)


def _duplicates(splits: dict[str, list[Pair]], headers: dict[str, Header]) -> Iterable[Problem]:
    """Pictures that occur twice in a split or in two splits; the later one counts as bad."""
    places: dict[str, list[tuple[str, Pair, str]]] = defaultdict(list)
    for split, pairs in splits.items():
        for pair in pairs:
            for name in (pair.blur, pair.sharp):
                if name in headers:
                    places[headers[name].sha256].append((split, pair, str(name)))
    for found in places.values():
        first_split, _, first_name = found[0]
        for split, pair, name in found[1:]:
            # One sharp picture may belong to many blurred ones, but never to two splits.
            if split != first_split or (name == pair.blur and name != first_name):
                text = f"{name} ({split}) is the same picture as {first_name} ({first_split})"
                yield Problem(split, pair.key, text, pair)
