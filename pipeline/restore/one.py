"""One photograph: read within its memory, restored at a scale that fits its blur, and its maps."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import numpy as np

from era.estimator import STRIDE
from pipeline import storage
from pipeline.arrays import Image
from pipeline.case import Case
from pipeline.checkpoint import LoadedModel, load_model
from pipeline.errors import UserError
from pipeline.images import codecs, from_float, to_float
from pipeline.inference import radius_of, require_finite, restore_array, to_device
from pipeline.inference.tiles import GRID
from pipeline.report import false_colours, tile
from pipeline.restore.memory import Plan, plan
from pipeline.restore.photo import Photo, decode_photo, upright

BEYOND = 0.9  # of the greatest radius: an estimate above may be of a blur that is greater still
BEYOND_SHARE = 0.05
# Wide blur is underestimated. Where the median radius is this much of the greatest one, and still
# this much of it at half the scale, half the scale restores better (measured, LABBOOK.md 19).
WIDE, WIDE_HALVED = 0.4, 0.375
AUTO = 0.0  # a working scale: the largest of these at which the model knows the blur
AUTO_SCALES = (1.0, 0.5, 0.25)
_opening = threading.Lock()


@dataclass(frozen=True)
class RestoreJob:
    """What restoring one photograph needs; can be pickled.

    Attributes:
        checkpoint, input, output: URLs; the output's is known once the input is checked.
        working_scale: in (0, 1]; the blur is removed at this scale; `AUTO` chooses it.
        memory_gb: about how much memory the photograph and the network may take.
        strength: in [0, 1], the share of the correction.
        compare, maps: write these pictures too.
        device: `pipeline.inference.DEVICES`.
    """

    checkpoint: str
    input: str
    output: str
    working_scale: float
    memory_gb: float
    strength: float
    compare: bool
    maps: bool
    device: str


def read_photo(job: RestoreJob) -> tuple[Photo, Plan]:
    """A photograph, and how its memory is divided.

    Raises:
        UserError: if it does not fit, is damaged, or is of a kind that cannot be restored.
    """
    # Photographs are checked where there may be no GPU.
    config, name = open_model(job.checkpoint, "cpu").config, storage.name_of(job.input)
    if storage.size(job.input) > job.memory_gb * 1e9:
        raise UserError(f"{name}: the file alone is larger than --memory {job.memory_gb:g} GB")
    data = storage.read_bytes(job.input)
    size, scaled = codecs.size(data, name), job.working_scale < 1
    planned = partial(plan, scaled=scaled, compare=job.compare, maps=job.maps)
    planned(size, len(data), config, job.memory_gb)  # nothing is unpacked that does not fit
    photo = decode_photo(data, name)
    # A tone curve takes 16 bits, whatever the file has.
    deep = size._replace(bytes_each=photo.rgb.itemsize)
    return photo, planned(deep, len(data), config, job.memory_gb)


def restore_photo(job: RestoreJob, photo: Photo, space: Plan) -> tuple[Case, str]:
    """Restore a photograph at the scale that is asked for, or that fits its blur.

    Returns:
        The result at full size, and what the user should know, or "".

    Raises:
        UserError: if the network's result is not finite.
    """
    import cv2

    loaded = open_model(job.checkpoint, job.device)
    size = photo.rgb.shape[1], photo.rgb.shape[0]
    scale, small = job.working_scale, photo.rgb
    for scale in (job.working_scale,) if job.working_scale != AUTO else AUTO_SCALES:
        if scale < 1:
            reduced = tuple(max(16, round(side * scale)) for side in size)
            small = cv2.resize(photo.rgb, reduced, interpolation=cv2.INTER_AREA)
        if job.working_scale == AUTO:
            coarse = radius_of(loaded.model, small, space.estimate_pixels)
            if not _too_wide(coarse, small, scale, loaded, space):
                break
    scaled = scale < 1
    result = restore_array(
        loaded.model,
        small,
        max_pixels=space.max_pixels,
        estimate_pixels=space.estimate_pixels,
        maps=job.maps,
        floats=scaled,
        strength=job.strength,
    )
    require_finite(result, loaded.url)
    warning = ""
    if reason := _too_wide(result.coarse_radius, small, scale, loaded, space):
        warning = f"{reason}; try --working-scale {scale / 2:g}"
    elif job.working_scale == AUTO and scaled:
        warning = f"restored at --working-scale {scale:g}, since its blur is wide"
    if scaled:
        # Only the correction is enlarged: what is sharp already keeps its detail.
        correction = cv2.resize(result.restored - to_float(small), size)
        floats = to_float(photo.rgb) + correction
        result = replace(result, pixels=from_float(floats, photo.rgb.dtype))
    return result, warning


def _too_wide(radius: Image, picture: Image, scale: float, loaded: LoadedModel, space: Plan) -> str:
    """Why half the scale would restore a picture better; empty if it would not.

    Args:
        radius: as estimated on the picture (H, W, 3), which has this scale, in its pixels.
    """
    import cv2

    most = loaded.config.radius_max
    beyond = float((radius > BEYOND * most).mean())
    if beyond > BEYOND_SHARE:
        known = f"about {most / scale:g} pixels or more, the most that this model knows"
        return f"{beyond:.0%} of it seems blurred by {known}"
    if np.median(radius) < WIDE * most or min(picture.shape[:2]) < 2 * GRID:
        return ""
    halved = cv2.resize(picture, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    median = float(np.median(radius_of(loaded.model, halved, space.estimate_pixels)))
    if median < WIDE_HALVED * most:
        return ""
    known = f"about {2 * median / scale:.0f} pixels, close to the {most / scale:g}"
    return f"most of it seems blurred by {known} that this model knows"


def pictures(job: RestoreJob, photo: Photo, result: Case) -> Iterator[tuple[str, Image]]:
    """The further pictures by their endings, upright as the photograph is shown."""
    turn = photo.orientation
    if job.compare:
        both = [upright(_8_bits(image), turn) for image in (photo.rgb, result.pixels)]
        yield "compare", np.concatenate(both, axis=1)
    if job.maps:
        yield "radius", upright(false_colours(result.radius, None), turn)
        yield "error", upright(false_colours(np.abs(result.error).mean(axis=2), None), turn)
        weights = result.weights[:, ::STRIDE, ::STRIDE]  # as they were estimated
        yield "weights", from_float(tile(np.stack([upright(w, turn) for w in weights])), np.uint8)


def _8_bits(image: Image) -> Image:
    import cv2

    return (
        image if image.dtype == np.uint8 else np.asarray(cv2.convertScaleAbs(image, alpha=1 / 257))
    )


def open_model(url: str, device: str) -> LoadedModel:
    """A network on a device; opened once in a process, whichever thread asks first."""
    with _opening:
        return _loaded(url, device)


@lru_cache(maxsize=2)
def _loaded(url: str, device: str) -> LoadedModel:
    loaded = load_model(url)
    return replace(loaded, model=to_device(loaded.model, device))
