"""The verb: photographs one by one; those that cannot be restored are reported, and the rest done.

All photographs are decoded once before the first one is restored, so that whatever can be refused
is refused before the network runs.
"""

from __future__ import annotations

import logging
import math
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import Any

import numpy as np

from era.estimator import STRIDE
from pipeline import freed_memory, storage
from pipeline.arrays import Image
from pipeline.case import Case
from pipeline.checkpoint import LoadedModel, load_model, resolve, shipped_models
from pipeline.cluster import has_cluster
from pipeline.errors import UserError
from pipeline.images import codecs, encode_png, from_float, to_float
from pipeline.inference import (
    GRID,
    check_device,
    pixels_for,
    radius_of,
    require_finite,
    restore_array,
    to_device,
)
from pipeline.parallel_map import parallel_map
from pipeline.progress import track
from pipeline.report import false_colours, tile
from pipeline.restore.inputs import Inputs, beside_url, expand, outputs_of
from pipeline.restore.memory import KEEPS_FROM_GB, Plan, plan
from pipeline.restore.photo import Photo, decode_photo, encode_photo, output_name, upright

log = logging.getLogger("era")
COMPARE, MAPS = ("compare",), ("radius", "error", "weights")  # pictures beside a photograph
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


def restore(
    inputs: Inputs,
    out: str | os.PathLike[str],
    checkpoint: str = "photographs",
    working_scale: float | str = 1.0,
    memory_gb: float = 3.0,
    compare: bool = False,
    maps: bool = False,
    strength: float = 1.0,
    device: str = "cpu",
) -> dict[str, Any]:
    """Restore photographs into a folder, under their own names.

    Args:
        inputs: files, folders, patterns (``*.jpg``), local or on S3.
        out: URL of a folder; never the inputs' own.
        checkpoint: see `pipeline.checkpoint.resolve`.
        working_scale: less than 1 for blur beyond the range that the model knows; ``auto``: 1,
            0.5 or 0.25 for each photograph, the largest at which the model knows its blur.
        memory_gb: about how much memory one photograph may take, beside the program's own 0.65
            GB; the network gets at most two thirds of it, which decides the tiles.
        compare: also write ``NAME.compare.png``, blurred beside restored.
        maps: also write ``NAME.radius.png``, ``NAME.weights.png`` and ``NAME.error.png``.
        strength: from 0 (the photograph as it is) to 1; less corrects less, least where the
            estimate of the blur is uncertain.
        device: ``cpu`` or ``cuda``, on which the network runs.

    Returns:
        `restored`, `failed` (counts), `out`; `incomplete` if any failed.

    Raises:
        UserError: if no photograph can be restored.
    """
    scale = _scale(working_scale)
    if not 0 <= strength <= 1:
        raise UserError(f"--strength {strength}: expected a number from 0 to 1")
    check_device(device)
    files, problems = expand(inputs)
    out = storage.absolute(out)
    beside = (*COMPARE * compare, *MAPS * maps)
    outputs_of(files, [storage.name_of(file) for file in files], out, beside)
    storage.check_writable(out)
    url = _checkpoint(checkpoint)
    # The nodes of a cluster have GPUs where its driver may have none.
    loaded = _open(url, "cpu" if has_cluster() else device)
    pixels_for(loaded.config, memory_gb)  # refuses what is no memory
    log.info("%s knows blur radii from 0 to %g pixels", loaded.url, loaded.config.radius_max)
    base = RestoreJob(loaded.url, "", "", scale, memory_gb, strength, compare, maps, device)
    for problem in problems:
        log.warning("failed: %s", problem)
    jobs, names = [], []
    for job, done in _each(_check_one, [replace(base, input=file) for file in files], "check"):
        problems += [done.problem] if done.problem else []
        if not done.problem:
            jobs.append(job)
            names.append(done.name)
    outputs = outputs_of([job.input for job in jobs], names, out, beside)
    _warn_of_replaced(names, out)
    jobs = [replace(job, output=output) for job, output in zip(jobs, outputs, strict=True)]
    restored = 0
    for _, done in _each(_restore_one, jobs, "restore", int(device == "cuda")):
        restored += not done.problem
        problems += [done.problem] if done.problem else []
    if not restored:
        rest = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise UserError(f"{problems[0]}{rest}")
    summary = {"restored": restored, "failed": len(problems), "out": out}
    return {**summary, "incomplete": bool(problems)}


def _warn_of_replaced(names: list[str], out: str) -> None:
    try:
        there = {*names} & {*storage.list_names(out)}
    except UserError:  # a folder may be there to be written to alone
        return
    if replaced := sorted(there):
        rest = f" and {len(replaced) - 1} more" if len(replaced) > 1 else ""
        log.warning("%s: its %s%s will be replaced", out, replaced[0], rest)


def _scale(given: float | str) -> float:
    try:
        scale = AUTO if given == "auto" else float(given)
    except ValueError:
        scale = math.nan
    if given != "auto" and not 0 < scale <= 1:
        raise UserError(
            f"--working-scale {given}: expected auto, or a number above 0 and at most 1"
        )
    return scale


@dataclass(frozen=True)
class _Done:
    """What came of a photograph: a problem, or warnings and the name that it is written under."""

    problem: str = ""
    warnings: list[str] = field(default_factory=list)
    name: str = ""


def _each(
    work: Any, jobs: list[RestoreJob], what: str, gpus: int = 0
) -> Iterator[tuple[RestoreJob, _Done]]:
    """Do the work for every job and log what it says; results in the order of the jobs."""
    found: list[_Done] = [_Done()] * len(jobs)
    # One at a time where there is no cluster: memory is for one photograph.
    for index, done in track(parallel_map(work, jobs, 1, gpus), len(jobs), what):
        found[index] = done
        for line in done.warnings:
            log.warning("%s: %s", jobs[index].input, line)
        if done.problem:
            log.warning("failed: %s", done.problem)
    yield from zip(jobs, found, strict=True)


def _check_one(job: RestoreJob) -> _Done:
    """Decode a photograph and see whether it fits into memory; nothing is written."""
    try:
        photo, _ = _read(job)
        name, renamed = output_name(photo.name, photo.source)
    except (UserError, MemoryError) as error:
        return _Done(problem=_problem(job, error))
    return _Done(warnings=[*photo.notes, *([renamed] if renamed else [])], name=name)


def _restore_one(job: RestoreJob) -> _Done:
    import cv2

    if job.memory_gb >= KEEPS_FROM_GB:
        freed_memory.keep()
    else:
        freed_memory.return_at_once()
    try:
        photo, space = _read(job)
        result, warning = _restored(job, photo, space)
        storage.write_bytes(job.output, encode_photo(photo, result.pixels))
        for ending, image in _pictures(job, photo, result):
            storage.write_bytes(beside_url(job.output, ending), encode_png(image))
    except (UserError, MemoryError) as error:
        return _Done(problem=_problem(job, error))
    except (RuntimeError, cv2.error) as error:  # how torch and OpenCV say that there is no memory
        if "allocate" not in str(error) and "Insufficient memory" not in str(error):
            raise
        return _Done(problem=_problem(job, MemoryError()))
    return _Done(warnings=[warning] if warning else [])


def _problem(job: RestoreJob, error: BaseException) -> str:
    reason = (
        "does not fit into this machine's memory; lower --memory"
        if isinstance(error, MemoryError)
        else error
    )
    return str(reason) if job.input in str(reason) else f"{job.input}: {reason}"


def _read(job: RestoreJob) -> tuple[Photo, Plan]:
    """A photograph, and how its memory is divided.

    Raises:
        UserError: if it does not fit, is damaged, or is of a kind that cannot be restored.
    """
    # Photographs are checked where there may be no GPU.
    config, name = _open(job.checkpoint, "cpu").config, storage.name_of(job.input)
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


def _restored(job: RestoreJob, photo: Photo, space: Plan) -> tuple[Case, str]:
    import cv2

    loaded = _open(job.checkpoint, job.device)
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


def _pictures(job: RestoreJob, photo: Photo, result: Case) -> Iterator[tuple[str, Image]]:
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


def _checkpoint(given: str) -> str:
    """A URL, or the name of a shipped model, which every node finds in its own installation."""
    return given if given in shipped_models() else resolve(given).url


def _open(url: str, device: str) -> LoadedModel:
    with _opening:
        return _loaded(url, device)


@lru_cache(maxsize=2)
def _loaded(url: str, device: str) -> LoadedModel:
    loaded = load_model(url)
    return replace(loaded, model=to_device(loaded.model, device))
