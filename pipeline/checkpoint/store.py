"""The checkpoints of one run: a thread writes them, in order, while training continues."""

from __future__ import annotations

import io
import json
import logging
import queue
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipeline import storage
from pipeline.checkpoint.prune import Pruner
from pipeline.errors import DamagedError, StorageDown, UserError
from pipeline.runfolder import (
    FORMAT,
    Checkpoint,
    RunFolder,
    fingerprint,
    write_commit,
)
from pipeline.runfolder.names import (
    CLAIM,
    EXCHANGE,
    META,
    MODEL,
    RUN_FILES,
    TRAINING,
    checkpoint_name,
    step_of,
)

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger("era")


@dataclass(frozen=True)
class LoadedCheckpoint:
    """A checkpoint's verified content.

    Attributes:
        weights: the averaged weights.
        training: the training state.
        run_files: metrics.jsonl and samples.jsonl as they were at its step; empty where the
            checkpoint keeps no copy of them, or they were not asked for.
    """

    checkpoint: Checkpoint
    weights: dict[str, Tensor]
    training: dict[str, Any]
    run_files: dict[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class _Job:
    step: int
    model: dict[str, Tensor]
    training: dict[str, Any]
    meta: dict[str, Any]
    files: dict[str, bytes]
    metrics: dict[str, float]
    keep_best: int

    def contents(self) -> dict[str, bytes]:
        """The files of its folder."""
        return {**serialised(self.model, self.training, self.meta), **self.files}


class CheckpointStore:
    """The checkpoints of one run. `save` returns at once; one thread writes, in order.

    A folder is written by one attempt only, and once: see `_claim`.

    Args:
        run_url: the run's folder.
        guard: called before every write, retry and deletion; raises where the run is not ours.
        attempt: the id of the attempt that writes, kept in COMMIT.
        warn: receives a line for each checkpoint that is passed over.
    """

    def __init__(
        self,
        run_url: str,
        guard: Callable[[], None] = lambda: None,
        attempt: str = "",
        warn: Callable[[str], None] = log.warning,
    ) -> None:
        self.run_url, self.guard, self.attempt, self.warn = run_url, guard, attempt, warn
        self.folder = RunFolder(run_url, warn)
        self._pruner = Pruner(self.folder, guard)
        self._queue: queue.Queue[_Job] = queue.Queue(maxsize=1)
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def url_of(self, step: int) -> str:
        """URL of a step's checkpoint, as a rule: another attempt may have taken its name."""
        return self.folder.checkpoint_url(checkpoint_name(step))

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

        Saving a step again is safe: it goes to a folder of its own.

        Args:
            model, training: CPU copies that are not changed afterwards.
            meta: `step`, `model` (fields of `era.ErAConfig`) and whatever else is worth keeping.
            files: the run's own files (metrics.jsonl, ...); written into the checkpoint and, whole,
                into the run's folder before COMMIT.
            metrics: of the validation at this step; the best `keep_best` by val/psnr are kept.

        Raises:
            UserError: if an earlier checkpoint could not be written after bounded retries.
        """
        self._raise()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="era-checkpoints", daemon=True)
            self._thread.start()
        self._queue.put(_Job(step, model, training, meta, files, metrics, keep_best))

    def wait(self) -> None:
        """Wait until all is written.

        Raises:
            UserError: if a checkpoint could not be written after bounded retries.
        """
        if self._thread is not None:
            self._queue.join()
        self._raise()

    def load_latest(self) -> LoadedCheckpoint | None:
        """Load the newest checkpoint whose contents are sound.

        One that is unfinished or damaged is passed over, which `warn` reports, and is never deleted
        by this store.

        Raises:
            UserError: if the storage does not answer: that is no reason to pass anything over.
                Or if nothing is sound in a run that began with another run's weights: it cannot
                begin from the start.
        """
        committed = self.folder.committed()
        for checkpoint in self.folder.newest_first():
            try:
                loaded = LoadedCheckpoint(*_load(checkpoint), self._run_files(checkpoint))
            except DamagedError as error:
                self.warn(f"checkpoint passed over: {error}")
                continue
            later = {name for name in committed if (step_of(name) or 0) >= checkpoint.step}
            self._pruner.spared = later - {checkpoint.name}
            return loaded
        if storage.exists(self.folder.file(EXCHANGE)):
            raise UserError(
                f"{self.run_url}: no sound checkpoint, and the run began with another run's "
                f"weights ({EXCHANGE}); restore its checkpoint from a copy, or begin another sweep"
            )
        self._pruner.spared = set(committed)
        return None

    def restore_run_files(self, checkpoint: Checkpoint) -> None:
        """Write metrics.jsonl and samples.jsonl again where they differ from a checkpoint's copy.

        A request of an earlier attempt that arrives late can put back an older file.
        """
        for name in RUN_FILES:
            url = self.folder.file(name)
            if name in checkpoint.files and not _is(url, checkpoint.files[name]):
                storage.write_bytes(url, checkpoint.read(name))

    def _run_files(self, checkpoint: Checkpoint) -> dict[str, bytes]:
        return {n: self._run_file(checkpoint, n) for n in RUN_FILES if n in checkpoint.files}

    def _run_file(self, checkpoint: Checkpoint, name: str) -> bytes:
        """The checkpoint's copy, else the beginning of the run's file where it is the same."""
        try:
            return checkpoint.read(name)
        except DamagedError:
            url, expected = self.folder.file(name), checkpoint.files[name]
            if storage.exists(url) and storage.size(url) >= expected["bytes"]:
                data = storage.read_bytes(url, 0, expected["bytes"])
                if fingerprint(data) == expected:
                    return data
            raise

    def _work(self) -> None:
        while True:
            job = self._queue.get()
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

    def _write(self, job: _Job) -> None:
        files, writer = job.contents(), _writer(self.attempt)
        what = f"checkpoint of step {job.step}"
        with storage.checked_before_retries(self.guard):
            name = storage.retry_outages(lambda: self._claim(job.step, writer), what)
            storage.retry_outages(lambda: self._put(job, files, name), what)
            self._prune(job)

    def _prune(self, job: _Job) -> None:
        """Remove old checkpoints; where that is refused, the new one is there all the same."""
        try:
            storage.retry_outages(
                lambda: self._pruner.prune(job.keep_best, job.step), "removal of old checkpoints"
            )
        except StorageDown:
            raise
        except UserError as error:
            self.guard()  # which may be what has refused
            log.warning("old checkpoints stay: %s", error)

    def _claim(self, step: int, writer: str) -> str:
        """The name of a folder that no other attempt writes to, now or later.

        The plain name is ours if the claim in it is. A store without conditional writes may take a
        second claim: an attempt that lost its claim so is either older than the other one, and
        fails at the guard, or newer, and then reads the other's claim here.
        """
        plain, own = checkpoint_name(step), checkpoint_name(step, writer)
        url = self.folder.checkpoint_url(plain)
        place, claim = storage.join(url, CLAIM), json.dumps({"writer": writer}).encode()
        self.guard()
        if not (storage.exists(place) or storage.exists(url)):
            storage.create(place, claim)
        self.guard()
        mine = storage.exists(place) and storage.read_bytes(place) == claim
        return plain if mine else own

    def _put(self, job: _Job, files: dict[str, bytes], folder: str) -> None:
        url = self.folder.checkpoint_url(folder)
        for name, data in files.items():
            self.guard()
            storage.write_bytes(storage.join(url, name), data)
        for name, data in job.files.items():
            self.guard()
            storage.write_bytes(self.folder.file(name), data)
        prints = {name: fingerprint(data) for name, data in files.items()}
        self.guard()
        write_commit(url, job.step, job.metrics, prints, self.attempt)
        self.guard()
        self.folder.note_newest(folder, self.attempt)


def _writer(attempt: str) -> str:
    """Names this save alone, not even another save of the same attempt."""
    return f"{attempt.partition('-')[0] or 'none'}-{secrets.token_hex(4)}"


def _load(checkpoint: Checkpoint) -> tuple[Checkpoint, dict[str, Tensor], dict[str, Any]]:
    _ = checkpoint.meta  # verified before the large files
    return checkpoint, checkpoint.load_model_state(), checkpoint.load_training()


def serialised(
    model: dict[str, Tensor], training: dict[str, Any], meta: dict[str, Any]
) -> dict[str, bytes]:
    """The bytes of a checkpoint's own files."""
    import torch
    from safetensors.torch import save as save_safetensors

    stream = io.BytesIO()
    torch.save(training, stream)
    return {
        MODEL: save_safetensors(model),
        TRAINING: stream.getvalue(),
        META: (json.dumps({"format": FORMAT, **meta}, indent=1) + "\n").encode(),
    }


def _is(url: str, expected: dict[str, Any]) -> bool:
    if not storage.exists(url) or storage.size(url) != expected["bytes"]:
        return False
    return fingerprint(storage.read_bytes(url)) == expected
