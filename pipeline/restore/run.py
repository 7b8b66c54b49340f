"""The verb: many photographs, each by itself; a bad one is reported and the others go on."""

from __future__ import annotations

import fnmatch
import logging
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from era.estimator import STRIDE
from pipeline import storage
from pipeline.checkpoint import LoadedModel, load_model, resolve, shipped_models
from pipeline.errors import UserError
from pipeline.images import IMAGE_SUFFIXES, encode_png, from_float, to_float
from pipeline.inference import Restoration, pixels_for, restore_array
from pipeline.parallel_map import parallel_map
from pipeline.progress import track
from pipeline.report import false_colours, tile
from pipeline.restore.photo import Photo, decode_photo, encode_photo

log = logging.getLogger("era")
Image = np.ndarray[Any, Any]
COMPARE, MAPS = ("compare",), ("radius", "error", "weights")  # pictures beside a photograph
BEYOND = 0.9  # of the greatest radius: an estimate above may be of a blur that is greater still
BEYOND_SHARE = 0.05
_opening = threading.Lock()


@dataclass(frozen=True)
class RestoreJob:
    """What restoring one photograph needs; can be pickled.

    Attributes:
        checkpoint, input, output: URLs.
        working_scale: in (0, 1]; the blur is removed at this scale.
        max_pixels: larger photographs are cut into tiles.
        compare, maps: write these pictures too.
    """

    checkpoint: str
    input: str
    output: str
    working_scale: float
    max_pixels: int
    compare: bool
    maps: bool


def restore(
    inputs: Sequence[str],
    out: str,
    checkpoint: str = "tiny",
    working_scale: float = 1.0,
    memory_gb: float = 3.0,
    compare: bool = False,
    maps: bool = False,
) -> dict[str, Any]:
    """Restore photographs into a folder, under their own names.

    Args:
        inputs: files, folders, patterns (``*.jpg``), local or on S3.
        out: URL of a folder; never the inputs' own.
        checkpoint: see `pipeline.checkpoint.resolve`.
        working_scale: less than 1 for blur beyond the range that the model knows.
        memory_gb: about how much memory one photograph may take; decides the tiles.
        compare: also write ``NAME.compare.png``, blurred beside restored.
        maps: also write ``NAME.radius.png``, ``NAME.weights.png`` and ``NAME.error.png``.

    Returns:
        `restored`, `failed` (counts), `out`; `incomplete` if any failed.

    Raises:
        UserError: if nothing can be done at all.
    """
    if not 0 < working_scale <= 1:
        raise UserError(f"--working-scale {working_scale}: expected a number above 0, at most 1")
    files, problems = _expand(inputs)
    out = storage.absolute(out)
    outputs = _outputs(files, out, (*COMPARE * compare, *MAPS * maps))
    storage.check_writable(out)
    loaded = _open(_checkpoint(checkpoint))
    log.info("%s knows blur radii from 0 to %g pixels", loaded.url, loaded.config.radius_max)
    pixels = pixels_for(loaded.config, memory_gb)
    base = RestoreJob(loaded.url, "", "", working_scale, pixels, compare, maps)
    jobs = [replace(base, input=i, output=o) for i, o in zip(files, outputs, strict=True)]
    restored = 0
    # One at a time where there is no cluster: memory is for one photograph.
    for _, done in track(parallel_map(_restore_one, jobs, workers=1), len(jobs), "restore"):
        restored += not done.problem
        problems += [done.problem] if done.problem else []
        if done.warning:
            log.warning("%s", done.warning)
    if not restored:
        rest = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise UserError(f"{problems[0]}{rest}")
    for problem in problems:
        log.warning("failed: %s", problem)
    summary = {"restored": restored, "failed": len(problems), "out": out}
    return {**summary, "incomplete": bool(problems)}


@dataclass(frozen=True)
class _Done:
    problem: str = ""
    warning: str = ""


def _restore_one(job: RestoreJob) -> _Done:
    try:
        name = storage.name_of(job.input)
        photo = decode_photo(storage.read_bytes(job.input), name)
        result, warning = _restored(job, photo)
        storage.write_bytes(job.output, encode_photo(photo, result.restored))
        for ending, image in _pictures(job, photo, result):
            storage.write_bytes(_beside(job.output, ending), encode_png(image))
    except UserError as error:
        return _Done(problem=str(error) if job.input in str(error) else f"{job.input}: {error}")
    if photo.pages > 1:
        first = f"only the first of its {photo.pages} pictures is restored"
        warning = f"{warning}; {first}" if warning else first
    return _Done(warning=f"{job.input}: {warning}" if warning else "")


def _restored(job: RestoreJob, photo: Photo) -> tuple[Restoration, str]:
    import cv2

    loaded = _open(job.checkpoint)
    size = photo.rgb.shape[1], photo.rgb.shape[0]
    small = photo.rgb
    if job.working_scale < 1:
        reduced = tuple(max(16, round(side * job.working_scale)) for side in size)
        small = cv2.resize(photo.rgb, reduced, interpolation=cv2.INTER_AREA)
    result = restore_array(loaded.model, small, max_pixels=job.max_pixels, maps=job.maps)
    beyond = float((result.coarse_radius > BEYOND * loaded.config.radius_max).mean())
    warning = ""
    if beyond > BEYOND_SHARE:
        warning = (
            f"{beyond:.0%} of it seems blurred by about {loaded.config.radius_max:g} pixels or "
            f"more, the most that this model knows; try --working-scale {job.working_scale / 2:g}"
        )
    if job.working_scale < 1:
        # Only the correction is enlarged: what is sharp already stays as it is.
        correction = cv2.resize(result.restored_float - to_float(small), size)
        floats = to_float(photo.rgb) + correction
        result = replace(
            result, restored=from_float(floats, photo.rgb.dtype), restored_float=floats
        )
    return result, warning


def _pictures(job: RestoreJob, photo: Photo, result: Restoration) -> list[tuple[str, Image]]:
    pictures = []
    if job.compare:
        both = np.concatenate([to_float(photo.rgb), result.restored_float], axis=1)
        pictures.append(("compare", from_float(both, np.uint8)))
    if job.maps:
        pictures.append(("radius", false_colours(result.radius, None)))
        pictures.append(("error", false_colours(np.abs(result.error).mean(axis=2), None)))
        weights = result.weights[:, ::STRIDE, ::STRIDE]  # as they were estimated
        pictures.append(("weights", from_float(tile(weights), np.uint8)))
    return pictures


def _checkpoint(given: str) -> str:
    """A URL, or the name of a shipped model, which each node has in a place of its own."""
    return given if given in shipped_models() else resolve(given).url


def _open(url: str) -> LoadedModel:
    with _opening:
        return _loaded(url)


@lru_cache(maxsize=1)
def _loaded(url: str) -> LoadedModel:
    return load_model(url)


def _expand(inputs: Sequence[str]) -> tuple[list[str], list[str]]:
    """The files that are meant, without duplicates; and what matches nothing."""
    files: dict[str, None] = {}
    problems = []
    for given in inputs:
        url = storage.absolute(given)
        if storage.is_dir(url):
            found = _images_in(url, "*")
        elif any(mark in storage.name_of(url) for mark in "*?[") and not storage.exists(url):
            folder, _, pattern = url.rpartition("/")
            found = _images_in(folder, pattern)
        else:
            found = [url] if storage.exists(url) else []
        if not found:
            problems.append(f"{given}: no such photograph")
        files |= dict.fromkeys(found)
    if not files:
        raise UserError(problems[0] if problems else "no input given")
    return list(files), problems


def _images_in(folder: str, pattern: str) -> list[str]:
    names = fnmatch.filter(storage.list_names(folder), pattern)
    return [storage.join(folder, n) for n in names if n.lower().endswith(IMAGE_SUFFIXES)]


def _outputs(files: Sequence[str], out: str, beside: Sequence[str]) -> list[str]:
    """Where each photograph goes; what would overwrite an input or another output is refused."""
    names = [storage.name_of(file) for file in files]
    outputs = [storage.join(out, name) for name in names]
    for file, output in zip(files, outputs, strict=True):
        if _same(file, output):
            raise UserError(f"--out {out}: is the folder of {file}; inputs are never overwritten")
    pictures = [_beside(output, ending) for output in outputs for ending in beside]
    twice = [url for url, count in Counter([*outputs, *pictures]).items() if count > 1]
    if twice:
        name = storage.name_of(twice[0])
        raise UserError(f"{name}: two inputs would be written there; restore them into two folders")
    return outputs


def _beside(output: str, ending: str) -> str:
    return f"{output.rpartition('.')[0]}.{ending}.png"


def _same(file: str, output: str) -> bool:
    """Whether two URLs are one file, links included."""
    if storage.is_local(file) and storage.is_local(output):
        return storage.local_path(file).resolve() == storage.local_path(output).resolve()
    return file == output
