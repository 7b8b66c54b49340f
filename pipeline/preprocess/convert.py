"""One shard: decode its pairs, check their pixels, write the whole shard."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from pipeline import storage
from pipeline.arrays import Image
from pipeline.data.shards import Sample, ShardWriter
from pipeline.errors import StorageDown, UserError, printable
from pipeline.images import decode_any, decode_image
from pipeline.parallel_map import in_order
from pipeline.preprocess.layouts import Pair
from pipeline.preprocess.precheck import WITHOUT

PARTS = ".parts"  # a folder that exists only until its split is published
SHARPNESS_CELL = 32  # pixels
SMALL = 256  # longest side of the reduced pictures that are compared
SAME_SCENE = 0.5  # least correlation of a pair's reduced pictures
MOST_SHIFT = 0.02  # of the longest side
FLAT = 0.002  # least standard deviation, of the full range
CLIPPED = 0.5  # share of pixels at either end

Loaded = tuple[Sample, dict[str, Any]]  # and what the manifest and the contact sheet say of it


@dataclass(frozen=True)
class ShardJob:
    """Everything needed to convert one shard; can be pickled.

    Attributes:
        base: URL that the pairs' names are relative to.
        dest: URL of the split's folder.
        name: the shard's file name.
        hashes: sha256 by relative name.
    """

    base: str
    dest: str
    name: str
    pairs: list[Pair]
    hashes: dict[str, str]

    @property
    def part_url(self) -> str:
        """URL of the shard's description, kept until all shards are complete."""
        return storage.join(self.dest, PARTS, f"{self.name}.json")


def convert(job: ShardJob) -> dict[str, Any]:
    """Write one shard, then its description; returns the description.

    The same job gives the same bytes. One pair is in memory at a time, and more where a thread
    can be spared for it (`in_order`).
    """
    described: list[dict[str, Any]] = []
    problems: list[list[str]] = []
    with storage.folder_beside(job.dest) as scratch:
        path = scratch / job.name
        writer = ShardWriter(path)
        for key, loaded in in_order(partial(_try, job), job.pairs):
            if isinstance(loaded, str):
                problems.append([key, loaded])
                continue
            sample, seen = loaded
            writer.add(sample)
            described.append(seen)
        shard = writer.close()
        if shard.samples:
            storage.move_in(path, storage.join(job.dest, job.name))
    part = {"shard": asdict(shard), "seen": described, "problems": problems}
    storage.write_json(job.part_url, part)
    return part


def _try(job: ShardJob, pair: Pair) -> tuple[str, Loaded | str]:
    """The pair's key with what it is, or with what is wrong with it."""
    try:
        return pair.key, _load(job, pair)
    except StorageDown:
        raise  # the pair's fault it is not
    except UserError as error:
        return pair.key, printable(str(error))
    except MemoryError:
        raise UserError(f"{pair.blur}: not enough memory to convert it; {WITHOUT}") from None


def _load(job: ShardJob, pair: Pair) -> Loaded:
    blur = _read(job.base, pair.blur)
    sharp = _read(job.base, pair.sharp) if pair.sharp else None
    radius = _read_radius(job.base, pair.radius) if pair.radius else None
    bits = 16 if blur.dtype == np.uint16 else 8
    if sharp is not None and np.array_equal(blur, sharp):
        raise UserError(f"{pair.blur} and {pair.sharp}: the same pixels, so nothing is blurred")
    small = [_reduced(image) for image in (blur, sharp) if image is not None]
    _refuse_bad(pair, small, blur.shape[1])
    blur16, sharp16 = _to_16_bits(blur), None if sharp is None else _to_16_bits(sharp)
    meta = {
        "height": blur.shape[0],
        "width": blur.shape[1],
        "bit_depth": bits,
        "sources": {_as_text(name): job.hashes[name] for name in pair.files},
        "sharpness": sharpness_map(blur if sharp is None else sharp),
    }
    return Sample(pair.key, blur16, sharp16, radius, meta), _seen(pair, blur16, sharp16, small)


def _as_text(name: str) -> str:
    """A file's name as JSON can hold it: bytes that are not UTF-8 become escapes."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def sharpness_map(image: Image) -> list[list[float]]:
    """The mean gradient of the luminance at half size in cells of about 32 pixels, as a fraction
    of the range."""
    import cv2

    half = cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    grey = cv2.cvtColor(half, cv2.COLOR_RGB2GRAY).astype(np.float32)
    grey /= np.float32(np.iinfo(image.dtype).max)
    gradient = cv2.magnitude(cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1))
    rows, columns = (-(-side // SHARPNESS_CELL) for side in image.shape[:2])
    cells = cv2.resize(gradient, (columns, rows), interpolation=cv2.INTER_AREA)
    return [[round(float(value), 5) for value in row] for row in cells]


def _read(base: str, name: str) -> Image:
    url = storage.join(base, name)
    return decode_image(storage.read_bytes(url), url)


def _read_radius(base: str, name: str) -> Image:
    url = storage.join(base, name)
    radius = decode_any(storage.read_bytes(url), url)
    if radius.dtype != np.uint16 or radius.ndim != 2:
        raise UserError(f"{url}: a radius map is one 16-bit channel, pixels x 256")
    return radius


def _to_16_bits(image: Image) -> Image:
    return image if image.dtype == np.uint16 else image.astype(np.uint16) * np.uint16(257)


def _refuse_bad(pair: Pair, small: list[Image], width: int) -> None:
    """Check the reduced pictures of a pair; `width` is that of the originals.

    Raises:
        UserError: for a flat picture, a pair of two scenes, or one shifted against the other.
    """
    import cv2

    grey = [cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in small]
    for name, image in zip((pair.blur, pair.sharp), grey, strict=False):
        if float(image.std()) < FLAT:
            raise UserError(f"{name}: the picture is flat: nothing can be learned from it")
    if len(grey) < 2:
        return
    correlation = float(np.corrcoef(grey[0].ravel(), grey[1].ravel())[0, 1])
    if correlation < SAME_SCENE:
        raise UserError(
            f"{pair.blur} and {pair.sharp}: not the same scene (correlation {correlation:.2f})"
        )
    window = cv2.createHanningWindow(grey[0].shape[::-1], cv2.CV_32F)
    # Copies, since it may put the window into what it is given.
    shift, response = cv2.phaseCorrelate(grey[0].copy(), grey[1].copy(), window)
    far = max(map(abs, shift)) > MOST_SHIFT * max(grey[0].shape)
    # A wide blur turns phases and looks like a shift, but then shifting back explains nothing.
    if response > 0.1 and far and _explained(grey[0], grey[1], shift) > correlation:
        factor = width / grey[0].shape[1]
        raise UserError(
            f"{pair.blur} and {pair.sharp}: shifted against each other by "
            f"{shift[0] * factor:.0f}, {shift[1] * factor:.0f} pixels"
        )


def _explained(blur: Image, sharp: Image, shift: Sequence[float]) -> float:
    """The correlation over the common area after moving `sharp` by (x, y) `shift` pixels."""
    x, y = (round(length) for length in shift)
    moved = np.roll(sharp, (-y, -x), (0, 1))
    height, width = sharp.shape
    rows = slice(max(0, -y), height - max(0, y))
    columns = slice(max(0, -x), width - max(0, x))
    there = blur[rows, columns].ravel(), moved[rows, columns].ravel()
    return float(np.corrcoef(*there)[0, 1]) if len(there[0]) else 0.0


def _reduced(image: Image) -> Image:
    """Reduce to a longest side of at most SMALL: RGB, float32 in [0, 1]."""
    import cv2

    scale = min(1.0, SMALL / max(image.shape[:2]))
    size = tuple(max(8, round(side * scale)) for side in image.shape[1::-1])
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return small.astype(np.float32) / np.float32(np.iinfo(image.dtype).max)


def _seen(pair: Pair, blur: Image, sharp: Image | None, small: list[Image]) -> dict[str, Any]:
    """A sample's entry for the manifest's statistics and the contact sheet."""
    import cv2

    seen: dict[str, Any] = {"key": pair.key, "hash": _difference_hash(small[0])}
    seen["mean"] = [round(value, 6) for value in cv2.mean(small[0])[:3]]
    ends = np.count_nonzero((blur[::4, ::4] == 0) | (blur[::4, ::4] == 65535))
    seen["clipped"] = round(ends / blur[::4, ::4].size, 4)
    if sharp is not None:
        mse = float(cv2.norm(blur, sharp, cv2.NORM_L2)) ** 2 / blur.size / 65535.0**2
        seen["psnr"] = round(-10 * float(np.log10(max(mse, 1e-12))), 4)
    seen["thumbnail"] = _thumbnail(np.hstack(small))
    return seen


def _difference_hash(small: Image) -> str:
    """A perceptual hash of 64 bits: whether each cell is brighter than its neighbour."""
    import cv2

    grey = cv2.cvtColor(cv2.resize(small, (9, 8), interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)
    return np.packbits(grey[:, 1:] > grey[:, :-1]).tobytes().hex()


def _thumbnail(image: Image) -> str:
    import cv2

    height = 120
    size = (max(1, round(image.shape[1] * height / image.shape[0])), height)
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    bgr = cv2.cvtColor((small * 255).astype(np.uint8), cv2.COLOR_RGB2BGR)
    _, data = cv2.imencode(".jpg", bgr)
    return base64.b64encode(bytes(data)).decode()
