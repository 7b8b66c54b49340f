"""Downloading a checkpoint as a bundle: verified, and complete only with its COMMIT."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

from pipeline import storage
from pipeline.checkpoint import resolve
from pipeline.config.load import parse_plain
from pipeline.errors import DamagedError, UserError
from pipeline.runfolder import (
    BEST_BY,
    Checkpoint,
    fingerprint,
    open_checkpoint,
    run_of_checkpoint,
    write_commit,
)
from pipeline.runfolder.names import COMMIT, CONFIG, META, MODEL
from pipeline.runs.browse import best_checkpoint
from pipeline.runs.card import model_card, network_of
from pipeline.runs.search import find_runs

log = logging.getLogger("era")
CARD = "README.md"


def pull(url: str, to: str, metric: str = BEST_BY) -> dict[str, Any]:
    """Download the checkpoint that a URL means as a bundle into the folder `to`.

    The bundle is model.safetensors, config.yaml, meta.json, README.md (the model card) and COMMIT.
    An interrupted download is completed by the same command, which keeps the files that are whole;
    a finished one is verified and left alone.

    Args:
        url: a checkpoint, bundle or run (its best, else its last); of a sweep or root the best.
        to: a local folder, new, empty, or with the same pull begun.

    Raises:
        UserError: if there is nothing to pull, a checksum does not match, or `to` holds other
            files, is no folder or cannot be written.
    """
    if not storage.is_local(to):
        raise UserError(f"--to {to}: give a local folder")
    checkpoint = _chosen(url, metric)
    target = storage.local_path(to)
    _require_free(target, checkpoint)
    summary = {"bundle": str(target), "checkpoint": checkpoint.url, "step": checkpoint.step}
    if storage.exists(str(target / COMMIT)):
        open_checkpoint(str(target)).verify()
        log.info("%s: complete already, every checksum matches", target)
        return {**summary, "metrics": checkpoint.metrics}
    storage.check_writable(str(target))
    config = _config_text(checkpoint)
    network_of(checkpoint)  # refused before anything is downloaded
    _download(checkpoint, MODEL, target)
    parameters = _parameters(target / MODEL)
    card = model_card(checkpoint, _parsed(config, checkpoint.url), _name(checkpoint), parameters)
    files = {META: checkpoint.read(META), CONFIG: config.encode(), CARD: card.encode()}
    for name, data in files.items():
        storage.write_bytes(str(target / name), data)
    prints = {name: fingerprint(data) for name, data in files.items()}
    prints[MODEL] = checkpoint.files[MODEL]
    write_commit(str(target), checkpoint.step, checkpoint.metrics, prints)
    return {**summary, "metrics": checkpoint.metrics}


def _parameters(path: Path) -> int:
    """How many numbers a safetensors file holds, by its header."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    except SafetensorError:
        raise DamagedError(f"{path}: not a safetensors file") from None


def _chosen(url: str, metric: str) -> Checkpoint:
    """One checkpoint as it is; of runs the best, and of one run without the metric its last."""
    absolute = storage.absolute(url)
    if not storage.is_dir(absolute) or storage.exists(storage.join(absolute, COMMIT)):
        return resolve(url, metric)
    runs = find_runs(absolute)
    if len(runs) == 1:
        return resolve(runs[0].url, metric)
    return best_checkpoint(runs, metric, url)[1]


def _require_free(target: Path, checkpoint: Checkpoint) -> None:
    """Refuse a folder with other content."""
    if storage.exists(str(target)) and not storage.is_dir(str(target)):
        raise UserError(f"--to {target}: this is a file; give a folder")
    names = set(storage.list_names(str(target)))
    if COMMIT in names:
        there = open_checkpoint(str(target))
        if there.files.get(MODEL) != checkpoint.files.get(MODEL) or there.step != checkpoint.step:
            raise UserError(f"--to {target}: holds another model already; choose another folder")
        return
    if MODEL in names:  # which comes first
        if fingerprint(storage.read_bytes(str(target / MODEL))) != checkpoint.files.get(MODEL):
            raise UserError(f"--to {target}: holds another {MODEL}; choose another folder")
        names -= {META, CONFIG, CARD, MODEL}
    if others := sorted(names):
        raise UserError(f"--to {target}: holds {others[0]}; choose a new or empty folder")


def _download(checkpoint: Checkpoint, name: str, target: Path) -> None:
    """Fetch a file unless it is there; it appears under its name only once it is verified."""
    local, expected = str(target / name), checkpoint.files.get(name)
    if storage.exists(local) and fingerprint(storage.read_bytes(local)) == expected:
        return
    storage.write_bytes(local, checkpoint.read(name))


def _parsed(config: str, url: str) -> dict[str, Any]:
    try:
        return parse_plain(config, url)
    except UserError:
        raise DamagedError(f"{url}: its {CONFIG} is not the configuration of a run") from None


def _config_text(checkpoint: Checkpoint) -> str:
    """config.yaml of the bundle, or of the run that the checkpoint belongs to."""
    if CONFIG in checkpoint.files:
        data = checkpoint.read(CONFIG)
    else:
        data = storage.read_bytes(storage.join(run_of_checkpoint(checkpoint.url), CONFIG))
    return data.decode("utf-8", errors="replace")


def _name(checkpoint: Checkpoint) -> str:
    if CONFIG in checkpoint.files:
        return f"ErA, {checkpoint.name}"
    run = storage.name_of(run_of_checkpoint(checkpoint.url))
    return f"ErA, {run}, step {checkpoint.step}"
