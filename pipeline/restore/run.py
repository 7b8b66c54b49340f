"""The verb: photographs one by one; those that cannot be restored are reported, and the rest done.

All photographs are decoded once before the first one is restored, so that whatever can be refused
is refused before the network runs.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from pipeline import freed_memory, storage
from pipeline.checkpoint import resolve, shipped_models
from pipeline.cluster import has_cluster
from pipeline.errors import UserError
from pipeline.images import encode_png
from pipeline.inference import check_device, pixels_for
from pipeline.parallel_map import parallel_map
from pipeline.progress import track
from pipeline.restore.inputs import Inputs, beside_url, expand, outputs_of
from pipeline.restore.memory import KEEPS_FROM_GB
from pipeline.restore.one import AUTO, RestoreJob, open_model, pictures, read_photo, restore_photo
from pipeline.restore.photo import encode_photo, output_name

log = logging.getLogger("era")
COMPARE, MAPS = ("compare",), ("radius", "error", "weights")  # pictures beside a photograph


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
    loaded = open_model(url, "cpu" if has_cluster() else device)
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
        photo, _ = read_photo(job)
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
        photo, space = read_photo(job)
        result, warning = restore_photo(job, photo, space)
        storage.write_bytes(job.output, encode_photo(photo, result.pixels))
        for ending, image in pictures(job, photo, result):
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


def _checkpoint(given: str) -> str:
    """A URL, or the name of a shipped model, which every node finds in its own installation."""
    return given if given in shipped_models() else resolve(given).url
