"""Checkpoints: saved in the background, whole or not at all, verified when loaded.

<run>/checkpoints/step-00000200/
    model.safetensors   averaged weights under plain names
    training.pt         everything else that resuming needs (loaded with weights_only=True)
    meta.json           step, network, hashes, versions
    COMMIT              written last: bytes and sha256 of the files, and the metrics
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import queue
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from era import ErA, ErAConfig
from pipeline import storage
from pipeline.errors import UserError

log = logging.getLogger("era")
FORMAT = "era-checkpoint/1"
MODEL, TRAINING, META, COMMIT = "model.safetensors", "training.pt", "meta.json", "COMMIT"
UPLOAD_TRIES = 6  # a bucket may fail for a minute or two: 5, 10, 20, 40, 60 seconds between
PREFIX = "step-"


def checkpoint_name(step: int) -> str:
    """The folder name of a step's checkpoint."""
    return f"{PREFIX}{step:08d}"


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint. `metrics` are those of the validation at its step, if any."""

    url: str
    meta: dict[str, Any]
    metrics: dict[str, float] = field(default_factory=dict)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The folder's name."""
        return storage.name_of(self.url)

    @property
    def step(self) -> int:
        """Optimiser steps done."""
        return int(self.meta["step"])

    def load_model_state(self) -> dict[str, Tensor]:
        """The averaged weights.

        Raises:
            UserError: if the file is damaged.
        """
        return load_safetensors(self.read(MODEL))

    def load_training(self) -> dict[str, Any]:
        """The training state; tensors and plain values only, nothing is unpickled."""
        stream = io.BytesIO(self.read(TRAINING))
        state: dict[str, Any] = torch.load(stream, map_location="cpu", weights_only=True)
        return state

    def read(self, name: str) -> bytes:
        """A file's bytes, checked against COMMIT."""
        data = storage.read_bytes(storage.join(self.url, name))
        expected = self.files.get(name)
        if expected is None or _fingerprint(data) != expected:
            raise UserError(f"{storage.join(self.url, name)}: damaged (its sha256 is not COMMIT's)")
        return data

    def verify(self) -> None:
        """Read every file.

        Raises:
            UserError: naming the first one that is damaged or missing.
        """
        for name in self.files:
            self.read(name)


def open_checkpoint(url: str) -> Checkpoint:
    """Open a committed checkpoint folder.

    Raises:
        UserError: if it has no COMMIT, or one that cannot be read.
    """
    commit_url = storage.join(url, COMMIT)
    if not storage.exists(commit_url):
        raise UserError(f"{url}: not a checkpoint, or an unfinished one (no COMMIT)")
    commit = storage.read_json(commit_url)
    if not isinstance(commit, dict) or commit.get("format") != FORMAT:
        raise UserError(f"{commit_url}: not of format {FORMAT}")
    unchecked = Checkpoint(url, {}, commit["metrics"], commit["files"])
    return Checkpoint(url, json.loads(unchecked.read(META)), commit["metrics"], commit["files"])


class CheckpointStore:
    """The checkpoints of one run. `save` returns at once; one thread writes, in order.

    Args:
        run_url: the run's folder, local or s3://.
    """

    def __init__(self, run_url: str) -> None:
        self.run_url = run_url
        self.folder = storage.join(run_url, "checkpoints")
        self._queue: queue.Queue[dict[str, Any] | None] = queue.Queue(maxsize=1)
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def url_of(self, step: int) -> str:
        """Where a step's checkpoint lies."""
        return storage.join(self.folder, checkpoint_name(step))

    def save(
        self,
        *,
        step: int,
        model: dict[str, Tensor],
        training: dict[str, Any],
        meta: dict[str, Any],
        files: dict[str, bytes],
        metrics: dict[str, float],
        keep_best: int = 2,
    ) -> None:
        """Write a checkpoint in the background; waits only for the one before the last.

        Args:
            model, training: CPU copies that nobody changes any more.
            files: the run's own files (metrics.jsonl, ...), put whole at its root before COMMIT.
            metrics: of the validation at this step; the best `keep_best` by val/psnr are kept.
        """
        self._raise()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="era-checkpoints", daemon=True)
            self._thread.start()
        job = {"step": step, "model": model, "training": training, "meta": meta}
        self._queue.put({**job, "files": files, "metrics": metrics, "keep_best": keep_best})

    def wait(self) -> None:
        """Wait until all is written.

        Raises:
            UserError: if a checkpoint could not be written after bounded retries.
        """
        if self._thread is not None:
            self._queue.join()
        self._raise()

    def open(self, name: str) -> Checkpoint:
        """Open a checkpoint by its folder name."""
        return open_checkpoint(storage.join(self.folder, name))

    def steps(self) -> list[int]:
        """Steps of the checkpoints that have a COMMIT, oldest first."""
        names = [n for n in storage.list_names(self.folder) if n.startswith(PREFIX)]
        committed = [n for n in names if storage.exists(storage.join(self.folder, n, COMMIT))]
        return sorted(int(name.removeprefix(PREFIX)) for name in committed)

    def latest_step(self) -> int | None:
        """Step of the newest committed checkpoint, its content unread."""
        steps = self.steps()
        return steps[-1] if steps else None

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint whose every checksum holds; worse ones are passed over, aloud."""
        for step in reversed(self.steps()):
            checkpoint = self._sound(step)
            if checkpoint is not None:
                return checkpoint
        return None

    def best(self, metric: str = "val/psnr") -> Checkpoint | None:
        """The sound checkpoint with the greatest metric; None where none was validated."""
        opened = [c for c in map(self._opened, self.steps()) if c is not None]
        scored = sorted((c for c in opened if metric in c.metrics), key=lambda c: c.metrics[metric])
        return next((c for c in reversed(scored) if self._sound(c.step)), None)

    def _opened(self, step: int) -> Checkpoint | None:
        try:
            return open_checkpoint(self.url_of(step))
        except (UserError, ValueError, KeyError) as error:
            log.warning("checkpoint passed over: %s", error)
            return None

    def _sound(self, step: int) -> Checkpoint | None:
        checkpoint = self._opened(step)
        try:
            if checkpoint is not None:
                checkpoint.verify()
        except UserError as error:
            log.warning("checkpoint passed over: %s", error)
            return None
        return checkpoint

    def _work(self) -> None:
        while (job := self._queue.get()) is not None:
            try:
                if self._error is None:
                    self._write(job)
            except Exception as error:  # raised in the training thread by the next call
                self._error = error
            finally:
                self._queue.task_done()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _write(self, job: dict[str, Any]) -> None:
        stream = io.BytesIO()
        torch.save(job["training"], stream)
        files = {
            MODEL: save_safetensors(job["model"]),
            TRAINING: stream.getvalue(),
            META: (json.dumps({"format": FORMAT, **job["meta"]}, indent=1) + "\n").encode(),
        }
        commit = {
            "format": FORMAT,
            "step": job["step"],
            "metrics": job["metrics"],
            "files": {name: _fingerprint(data) for name, data in files.items()},
        }
        patiently(lambda: self._put(job, files, commit))
        patiently(lambda: self._prune(job["keep_best"]))

    def _put(self, job: dict[str, Any], files: dict[str, bytes], commit: dict[str, Any]) -> None:
        url = self.url_of(job["step"])
        storage.delete(storage.join(url, COMMIT))  # what was there is not whole any more
        for name, data in files.items():
            storage.write_bytes(storage.join(url, name), data)
        for name, data in job["files"].items():
            storage.write_bytes(storage.join(self.run_url, name), data)
        storage.write_json(storage.join(url, COMMIT), commit)

    def _prune(self, keep_best: int, metric: str = "val/psnr") -> None:
        """Delete all but the best `keep_best` and the newest; COMMIT goes first."""
        steps = self.steps()
        opened = {step: self._opened(step) for step in steps[:-1]}
        scores = {s: c.metrics[metric] for s, c in opened.items() if c and metric in c.metrics}
        newest = self._opened(steps[-1]) if steps else None
        if newest and metric in newest.metrics:
            scores[steps[-1]] = newest.metrics[metric]
        best = sorted(scores, key=lambda step: scores[step])[-keep_best:]
        for step in steps[:-1]:
            if step not in best:
                storage.delete(storage.join(self.url_of(step), COMMIT))
                storage.delete(self.url_of(step))


@dataclass(frozen=True)
class LoadedModel:
    """A network in eval mode, and where it came from."""

    model: ErA
    meta: dict[str, Any]
    url: str


def load_model(url: str, metric: str = "val/psnr") -> LoadedModel:
    """Load the network of a run (its best, else its last), a checkpoint, a bundle, or a shipped name.

    Raises:
        UserError: if there is none, or it is damaged or of another format.
    """
    checkpoint = resolve(url, metric)
    config = ErAConfig.from_dict(checkpoint.meta["model"])
    model = ErA(config)
    model.load_state_dict(checkpoint.load_model_state())
    return LoadedModel(model.eval(), checkpoint.meta, checkpoint.url)


def resolve(url: str, metric: str = "val/psnr") -> Checkpoint:
    """Find the checkpoint that a URL or a shipped model's name means."""
    shipped = Path(__file__).parent / "models" / url
    if "/" not in url and shipped.is_dir():
        return open_checkpoint(str(shipped))
    url = storage.absolute(url)
    if storage.exists(storage.join(url, COMMIT)):
        return open_checkpoint(url)
    store = CheckpointStore(url)
    checkpoint = store.best(metric) or store.latest()
    if checkpoint is None:
        raise UserError(f"{url}: no checkpoint there; give a run, a checkpoint or a bundle")
    return checkpoint


def patiently(work: Any) -> None:
    """Run storage work again over some minutes: a bucket that fails for a minute loses nothing."""
    import tenacity

    tenacity.Retrying(
        stop=tenacity.stop_after_attempt(UPLOAD_TRIES),
        wait=tenacity.wait_exponential(multiplier=5, max=60),
        retry=tenacity.retry_if_exception_type(UserError),
        reraise=True,
    )(work)


def _fingerprint(data: bytes) -> dict[str, Any]:
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
