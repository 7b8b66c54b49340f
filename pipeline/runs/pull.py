"""Taking a checkpoint home: verified, resumable, and complete only with its COMMIT."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

import yaml

from pipeline import storage
from pipeline.checkpoint import (
    COMMIT,
    META,
    MODEL,
    Checkpoint,
    DamagedError,
    fingerprint,
    open_checkpoint,
    resolve,
    write_commit,
)
from pipeline.errors import UserError
from pipeline.progress import track
from pipeline.runfolder.names import CONFIG
from pipeline.runs.browse import best_checkpoint
from pipeline.runs.card import model_card
from pipeline.runs.search import find_runs

log = logging.getLogger("era")
PART = 8 << 20  # bytes of one request
CARD = "README.md"
UNFINISHED = ".part"


def pull(url: str, to: str, metric: str = "val/psnr") -> dict[str, Any]:
    """Download the checkpoint that a URL means as a bundle into the folder `to`.

    The bundle is model.safetensors, config.yaml, meta.json, README.md (the model card) and COMMIT.
    A broken download is continued by the same command; a finished one is verified and left alone.

    Args:
        url: a checkpoint, bundle or run (its best, else its last); of a sweep or root the best.
        to: a local folder, new, empty, or with the same pull begun.

    Raises:
        UserError: if there is nothing to pull, a checksum does not hold, or `to` holds other files.
    """
    if not storage.is_local(to):
        raise UserError(f"--to {to}: give a local folder")
    checkpoint = _chosen(url, metric)
    target = storage.local_path(to)
    _require_free(target, checkpoint)
    summary = {"bundle": str(target), "checkpoint": checkpoint.url, "step": checkpoint.step}
    if (target / COMMIT).exists():
        open_checkpoint(str(target)).verify()
        log.info("%s: complete already, every checksum holds", target)
        return {**summary, "metrics": checkpoint.metrics}
    config = _config_text(checkpoint)
    _download(checkpoint, MODEL, target)
    card = model_card(checkpoint, yaml.safe_load(config) or {}, _name(checkpoint))
    files = {META: checkpoint.read(META), CONFIG: config.encode(), CARD: card.encode()}
    for name, data in files.items():
        storage.write_bytes(str(target / name), data)
    prints = {name: fingerprint(data) for name, data in files.items()}
    prints[MODEL] = checkpoint.files[MODEL]
    write_commit(str(target), checkpoint.step, checkpoint.metrics, prints)
    return {**summary, "metrics": checkpoint.metrics}


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
    names = set(storage.list_names(str(target)))
    if COMMIT in names:
        there = open_checkpoint(str(target))
        if there.files.get(MODEL) != checkpoint.files[MODEL] or there.step != checkpoint.step:
            raise UserError(f"--to {target}: holds another model already; choose another folder")
        return
    expected = {META, CONFIG, CARD, MODEL, _part_name(checkpoint, MODEL)}
    strangers = sorted(names - expected)
    if strangers:
        raise UserError(f"--to {target}: holds {strangers[0]}; choose a new or empty folder")


def _download(checkpoint: Checkpoint, name: str, target: Path) -> None:
    """Fetch a file piece by piece, going on where an earlier try ended."""
    final, expected = target / name, checkpoint.files[name]
    if final.is_file() and fingerprint(final.read_bytes()) == expected:
        return None
    part = target / _part_name(checkpoint, name)
    target.mkdir(parents=True, exist_ok=True)
    resumed = part.exists() and part.stat().st_size > 0
    _fetch(storage.join(checkpoint.url, name), part, int(expected["bytes"]))
    if _sha256(part) != expected["sha256"]:
        part.unlink()
        if resumed:  # perhaps only what the earlier try left was bad
            return _download(checkpoint, name, target)
        raise DamagedError(
            f"{storage.join(checkpoint.url, name)}: damaged (its sha256 is not the one in COMMIT)"
        )
    part.replace(final)
    return None


def _fetch(url: str, part: Path, total: int) -> None:
    start = part.stat().st_size if part.exists() else 0
    if start:
        log.info("going on with %s at byte %d of %d", url, start, total)
    starts = range(start, total, PART)
    with part.open("ab") as stream:
        for begin in track(starts, len(starts), "pull"):
            stream.write(storage.read_bytes(url, begin, min(begin + PART, total)))
            stream.flush()


def _part_name(checkpoint: Checkpoint, name: str) -> str:
    """The unfinished file, named by what it will be: parts of two checkpoints never mix."""
    return f"{name}.{checkpoint.files[name]['sha256'][:12]}{UNFINISHED}"


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _config_text(checkpoint: Checkpoint) -> str:
    """config.yaml of the bundle, or of the run that the checkpoint belongs to."""
    if CONFIG in checkpoint.files:
        return checkpoint.read(CONFIG).decode()
    run_url = checkpoint.url.rpartition("/")[0].rpartition("/")[0]
    url = storage.join(run_url, CONFIG) if run_url else ""
    if url and storage.exists(url):
        return storage.read_text(url)
    raise UserError(f"{checkpoint.url}: its run's {CONFIG} is missing; pull from within the run")


def _name(checkpoint: Checkpoint) -> str:
    if CONFIG in checkpoint.files:
        return f"ErA, {checkpoint.name}"
    run = checkpoint.url.rpartition("/")[0].rpartition("/")[0]
    return f"ErA, {storage.name_of(run)}, step {checkpoint.step}"
