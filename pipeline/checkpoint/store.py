"""The checkpoints of one run: one thread writes them, in order, while training goes on."""

from __future__ import annotations

import io
import json
import logging
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import save as save_safetensors
from torch import Tensor

from pipeline import storage
from pipeline.checkpoint.folder import (
    COMMIT,
    FORMAT,
    META,
    MODEL,
    PREFIX,
    TRAINING,
    Checkpoint,
    checkpoint_name,
    fingerprint,
    open_checkpoint,
    write_commit,
)
from pipeline.checkpoint.ranking import ranked
from pipeline.errors import DamagedError

log = logging.getLogger("era")


@dataclass(frozen=True)
class _Job:
    step: int
    model: dict[str, Tensor]
    training: dict[str, Any]
    meta: dict[str, Any]
    files: dict[str, bytes]
    metrics: dict[str, float]
    keep_best: int


class CheckpointStore:
    """The checkpoints of one run. `save` returns at once; one thread writes, in order.

    Args:
        run_url: the run's folder, local or s3://.
        guard: called before every write, retry and deletion; raises where the run is not ours.
        attempt: the id of the attempt that writes, kept in COMMIT.
    """

    def __init__(
        self, run_url: str, guard: Callable[[], None] = lambda: None, attempt: str = ""
    ) -> None:
        self.run_url, self.guard, self.attempt = run_url, guard, attempt
        self.folder = storage.join(run_url, "checkpoints")
        self._queue: queue.Queue[_Job] = queue.Queue(maxsize=1)
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._passed_over: set[int] = set()
        self._unfinished: set[int] = set()  # without a COMMIT at the last prune

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

        Saving a step again is safe: its COMMIT is removed first.

        Args:
            model, training: CPU copies that nobody changes any more.
            meta: `step`, `model` (fields of `era.ErAConfig`) and whatever else is worth keeping.
            files: the run's own files (metrics.jsonl, ...), put whole at its root before COMMIT.
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

    def open(self, name: str) -> Checkpoint:
        """Open a checkpoint by its folder name."""
        return open_checkpoint(storage.join(self.folder, name))

    def steps(self) -> list[int]:
        """Steps of the checkpoints that have a COMMIT, oldest first."""
        return [s for s in self._all_steps() if storage.exists(self._commit_url(s))]

    def latest_step(self) -> int | None:
        """Step of the newest committed checkpoint, its content unread."""
        for step in reversed(self._all_steps()):
            if storage.exists(self._commit_url(step)):
                return step
        return None

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint whose every checksum holds.

        One that is unfinished or damaged is passed over, and a warning says so.

        Raises:
            UserError: if the storage does not answer: that is no reason to pass anything over.
        """
        for step in reversed(self._all_steps()):
            checkpoint = self._sound(step)
            if checkpoint is not None:
                return checkpoint
        return None

    def best(self, metric: str = "val/psnr") -> Checkpoint | None:
        """The sound checkpoint with the best value of a metric; None where none was validated."""
        opened = filter(None, map(self._opened, self.steps()))
        for checkpoint in ranked(opened, metric, lambda c: c.metrics):
            if self._sound(checkpoint.step) is not None:
                return checkpoint
        return None

    def all(self) -> list[Checkpoint]:
        """Every committed checkpoint, oldest first, its weights unread."""
        return list(filter(None, map(self._opened, self.steps())))

    def prune(self, keep_best: int, last: int, metric: str = "val/psnr") -> None:
        """Delete all but the best `keep_best` by a metric and the one of step `last`.

        Where fewer have the metric the newest others take the free places. COMMIT goes first.

        What this attempt did not write or see to be whole stays: steps above `last`, which belong
        to a newer attempt or were passed over; checkpoints whose COMMIT cannot be read now; and
        folders without a COMMIT, unless the prune before this one found them without it too.
        """
        steps = [s for s in self._all_steps() if s <= last and s not in self._passed_over]
        opened = list(filter(None, map(self._opened, steps)))
        best = [c.step for c in ranked(opened, metric, lambda c: c.metrics)][:keep_best]
        others = [c.step for c in reversed(opened) if c.step not in (*best, last)]
        keep = {last, *best, *others[: keep_best - len(best)]}
        unfinished = {s for s in steps if s != last and not storage.exists(self._commit_url(s))}
        for step in [c.step for c in opened if c.step not in keep]:
            self._delete(step)
        for step in sorted(unfinished & self._unfinished):
            self._delete(step)
        self._unfinished = unfinished

    def _delete(self, step: int) -> None:
        self.guard()
        storage.delete(self._commit_url(step))
        for entry in storage.find(self.url_of(step)):
            self.guard()
            storage.delete(entry.url)
        storage.delete(self.url_of(step))  # the empty folder of a local run

    def _all_steps(self) -> list[int]:
        names = storage.list_names(self.folder)
        digits = [n.removeprefix(PREFIX) for n in names if n.startswith(PREFIX)]
        return sorted(int(step) for step in digits if step.isdecimal())

    def _commit_url(self, step: int) -> str:
        return storage.join(self.url_of(step), COMMIT)

    def _opened(self, step: int) -> Checkpoint | None:
        try:
            return open_checkpoint(self.url_of(step))
        except DamagedError:
            return None

    def _sound(self, step: int) -> Checkpoint | None:
        try:
            checkpoint = open_checkpoint(self.url_of(step))
            checkpoint.verify()
            return checkpoint
        except DamagedError as error:
            log.warning("checkpoint passed over: %s", error)
            self._passed_over.add(step)
            return None

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
        files = serialised(job.model, job.training, job.meta)
        with storage.checked_before_retries(self.guard):
            storage.retry_outages(lambda: self._put(job, files), f"checkpoint of step {job.step}")
            storage.retry_outages(
                lambda: self.prune(job.keep_best, job.step), "removal of old checkpoints"
            )

    def _put(self, job: _Job, files: dict[str, bytes]) -> None:
        self.guard()
        url = self.url_of(job.step)
        storage.delete(storage.join(url, COMMIT))  # what was there is not whole any more
        for name, data in files.items():
            self.guard()
            storage.write_bytes(storage.join(url, name), data)
        for name, data in job.files.items():
            self.guard()
            storage.write_bytes(storage.join(self.run_url, name), data)
        prints = {name: fingerprint(data) for name, data in files.items()}
        self.guard()
        write_commit(url, job.step, job.metrics, prints, self.attempt)
        self._passed_over.discard(job.step)


def serialised(
    model: dict[str, Tensor], training: dict[str, Any], meta: dict[str, Any]
) -> dict[str, bytes]:
    """The bytes of a checkpoint's files."""
    stream = io.BytesIO()
    torch.save(training, stream)
    return {
        MODEL: save_safetensors(model),
        TRAINING: stream.getvalue(),
        META: (json.dumps({"format": FORMAT, **meta}, indent=1) + "\n").encode(),
    }
