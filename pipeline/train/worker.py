"""What each Ray Train worker runs: put the pieces together, resume, loop, save, validate."""

from __future__ import annotations

import os
import platform
import resource
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from pipeline import __version__
from pipeline.checkpoint import CheckpointStore
from pipeline.cluster import work_in
from pipeline.config import TrainConfig, to_plain
from pipeline.data.loader import Batch, TrainLoader
from pipeline.data.split import Split
from pipeline.errors import UserError
from pipeline.runfolder import frozen_hash
from pipeline.runfolder.names import CHAOS, NONFINITE, SKIPPED
from pipeline.tracking import Tracker
from pipeline.train.driver_channel import DriverChannel, Event
from pipeline.train.loop import Loop, any_rank, gather_lists
from pipeline.train.setup import imitated, open_splits, order_plan, prepare_torch
from pipeline.train.state import TrainState
from pipeline.train.validate import validate

PREEMPTION_CHECK_SECONDS = 5.0


def train_worker(payload: dict[str, Any]) -> None:
    """Ray Train's entry on every rank.

    Args:
        payload: `config`, `run_url`, `channel`, `owner`, `folder`, and `gated`, see
            `pipeline.train.driver.train`.
    """
    import ray.train

    work_in(payload["folder"])
    context = ray.train.get_context()
    worker = Worker(
        payload["config"],
        payload["run_url"],
        payload["channel"],
        payload["owner"],
        context.get_world_rank(),
        context.get_world_size(),
        gated=payload["gated"],
    )
    try:
        worker.run()
    finally:
        worker.close()


class Worker:
    """One rank of a run."""

    def __init__(
        self,
        config: TrainConfig,
        run_url: str,
        channel: Any,
        owner: str,
        rank: int,
        world_size: int,
        *,
        gated: bool = False,
    ) -> None:
        self.config, self.run_url = config, run_url
        self.gated = gated
        self.rank, self.world_size = rank, world_size
        self.channel = DriverChannel(channel)
        self.device = prepare_torch(config)
        self.train_split, self.val_split = open_splits(config)
        self.state = TrainState(config, self.device)
        self.store = CheckpointStore(run_url, self._require_owner, owner, self._warn)
        self.owner = owner
        self.spool = tempfile.TemporaryDirectory(prefix="era-spool-")
        self.tracker: Tracker | None = None
        self.draining_nodes: set[str] = set()
        self.looked = time.monotonic()
        self.told_skipped: set[str] = set()
        self.saved_step = -1
        self.last_step = min(config.debug.stop_at or config.train.steps, config.train.steps)

    def run(self) -> None:
        """Resume, then step to the end."""
        self._resume()
        config = self.config
        self.loader = TrainLoader(
            self.train_split,
            order_plan(config),
            rank=self.rank,
            world_size=self.world_size,
            start_step=self.state.step,
            steps=self.last_step,
            workers=config.loader.workers,
            prefetch=config.loader.prefetch,
            skip_damaged=config.data.skip_damaged,
            log_samples=config.debug.log_samples,
        )
        loop = Loop(config, self.state, self.loader, self.device, self.train_split.has_radius)
        loop.loader_note = self._note_skipped  # type: ignore[method-assign]
        if self.rank == 0:
            self.channel.tell(Event(self.state.step, line=self._opening()))
            if advice := imitated(config.train.precision, self.device):
                self.channel.tell(Event(self.state.step, line=advice))
        loop.run(self._step_done)
        self.store.wait()
        self.channel.flush()

    def close(self) -> None:
        """Let go of threads, files and the process group's peers."""
        if hasattr(self, "loader"):
            self.loader.close()
        if self.tracker is not None:
            self.tracker.close()
        self.spool.cleanup()

    def _require_owner(self) -> None:
        self.store.folder.require_owner(self.owner)

    def _warn(self, text: str) -> None:
        """A warning that the user is to see, whatever machine this is."""
        if self.rank == 0:
            self.channel.tell(Event(self.state.step, line=text))

    def _resume(self) -> None:
        loaded = self.store.load_latest() if self.rank == 0 else None
        found: list[Any] = [None if loaded is None else loaded.checkpoint.name]
        if self.world_size > 1:
            dist.broadcast_object_list(found)
        if found[0] is not None:
            loaded = loaded or self.store.load(found[0])
            self._refuse_other_data(loaded.checkpoint.meta)
            self.state.restore(loaded.weights, loaded.training)
            self.saved_step = self.state.step
        if self.rank == 0:
            self.tracker = Tracker(
                Path(self.spool.name),
                run_url=self.run_url,
                config=to_plain(self.config),
                settings=self.config.tracking,
                resume_step=self.state.step,
                lineage=self._meta(),
                earlier=loaded.run_files if loaded else {},
            )

    def _refuse_other_data(self, meta: dict[str, Any]) -> None:
        for name, split in self._manifests().items():
            if split is not None and meta.get(name, split.manifest_sha256) != split.manifest_sha256:
                raise UserError(
                    f"{split.url}: the data is not what run {self.run_url} began with "
                    "(its manifest changed); train under another run.name"
                )

    def _manifests(self) -> dict[str, Split | None]:
        return {"data_manifest_sha256": self.train_split, "val_manifest_sha256": self.val_split}

    def _step_done(self, batch: Batch, values: dict[str, float]) -> None:
        config, step = self.config, self.state.step
        self.state.averages.add(values)
        if config.debug.log_samples:
            self._log_samples(batch)
        if step % config.tracking.log_every == 0 or step == config.train.steps:
            self._log_step()
            if config.data.skip_damaged:
                self._tell_damaged()
        stopping, look = self._agreed()
        validated = self._validate_now(step)
        metrics = self._validate() if validated else {}
        draining = look and self._draining()
        due = step == self.last_step or step % config.checkpoint.every == 0
        if validated or stopping or draining or due:
            self._save(metrics)
        if draining:
            self.store.wait()
        if stopping or (validated and self._stopped_for_its_result()):
            self._leave()
        self._chaos(step)

    def _validate_now(self, step: int) -> bool:
        every, last = self.config.train.validate_every, step == self.config.train.steps
        return last or bool(every and step % every == 0)

    def _log_samples(self, batch: Batch) -> None:
        pairs = gather_lists([f"{i} {c}" for i, c in zip(batch.ids, batch.crcs, strict=True)])
        if self.tracker is not None:
            ids, crcs = zip(*(pair.rsplit(" ", 1) for pair in pairs), strict=True)
            self.tracker.samples(batch.step, list(ids), [int(crc) for crc in crcs])

    def _log_step(self) -> None:
        metrics = self.state.averages.take()
        step_seconds = metrics.pop("time/step")
        metrics["train/samples_per_second"] = self.config.train.global_batch / step_seconds
        metrics["train/skipped_steps"] = float(self.state.skipped)
        metrics["memory/peak_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        for stage, scalars in enumerate(self.state.model.scalars.raw.detach()):
            names = ("lambda_1", "lambda_2", "lambda_3", "lambda_e")
            values = torch.nn.functional.softplus(scalars).tolist()
            for name, value in zip(names, values, strict=True):
                metrics[f"{name}/stage_{stage}"] = value
        self._tell(metrics)

    def _tell(self, metrics: dict[str, float], checkpoint: str = "") -> None:
        if self.tracker is not None:
            self.tracker.log(self.state.step, metrics)
            self.channel.tell(Event(self.state.step, metrics, checkpoint=checkpoint))

    def _validate(self) -> dict[str, float]:
        metrics: dict[str, float] = {}
        if self.val_split is not None:
            metrics, panels = validate(
                self.state.ema,
                self.val_split,
                self.rank,
                self.world_size,
                str(self.device),
                self.config.tracking.images,
            )
            if self.tracker is not None:
                self.tracker.images(self.state.step, panels)
            self._tell(metrics, self.store.url_of(self.state.step))
        return metrics

    def _save(self, metrics: dict[str, float]) -> None:
        if self.tracker is None or self.state.step == self.saved_step:
            return
        self.saved_step = self.state.step
        self.store.save(
            step=self.state.step,
            model=self.state.weights(),
            training=self.state.training(),
            meta=self._meta(),
            files=self.tracker.files(),
            metrics=metrics,
            keep_best=self.config.checkpoint.keep_best,
        )

    def _meta(self) -> dict[str, Any]:
        return {
            "step": self.state.step,
            "model": self.state.model.config.to_dict(),
            "frozen_sha256": frozen_hash(self.config),
            **{k: split and split.manifest_sha256 for k, split in self._manifests().items()},
            "world_size": self.world_size,
            "threads": self.config.scaling.threads,
            "machine": platform.machine(),
            "git": self.config.run.revision or None,
            "versions": {
                "era": __version__,
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
        }

    def _agreed(self) -> tuple[bool, bool]:
        """Whether to stop, and whether to ask for preemptions; rank 0 says, all do the same."""
        wanted = due = False
        if self.rank == 0:
            wanted = self.channel.should_stop() and self.state.step < self.config.train.steps
            due = time.monotonic() - self.looked >= PREEMPTION_CHECK_SECONDS
        wanted, due = any_rank(wanted, due)
        if due:
            self.looked = time.monotonic()
        return wanted, due

    def _stopped_for_its_result(self) -> bool:
        """In a gated run, wait for the decision about a validation; every rank must ask."""
        if not self.gated or self.state.step == self.last_step:
            return False
        if self.rank == 0:
            self.store.wait()
        return any_rank(self.rank == 0 and self.channel.settle())[0]

    def _draining(self) -> bool:
        """Whether Ray says that one more node is being taken away; every rank must ask."""
        import ray.train

        info = ray.train.get_preemption_info()
        nodes = set(info.preempted_node_ids) if info is not None else set()
        new = not nodes <= self.draining_nodes
        self.draining_nodes |= nodes
        return new

    def _leave(self) -> None:
        self.store.wait()
        self.loader.stop()

    def _note_skipped(self, step: int, ids: list[str]) -> None:
        if self.rank == 0:
            self.store.folder.note_once(NONFINITE, {"step": step, "ids": ids})
            self.channel.tell(Event(step, line=f"step {step} skipped: not finite"))

    def _tell_damaged(self) -> None:
        """Say which samples data.skip_damaged has left out; every rank must take part."""
        skipped = dict(self.loader.skipped)  # the loader's thread may add to it
        new = [f"{key}: {skipped[key]}" for key in sorted(skipped) if key not in self.told_skipped]
        self.told_skipped.update(skipped)
        found = sorted(set(gather_lists(new)))
        if self.rank == 0 and found:
            line = {"step": self.state.step, "damaged": found}
            self.store.folder.note_once(SKIPPED, line)
            for text in found:
                self.channel.tell(Event(self.state.step, line=f"sample left out: {text}"))

    def _chaos(self, step: int) -> None:
        every = self.config.chaos.kill_every
        if not every or step % every or step >= self.config.train.steps:
            return
        if (step // every) % self.world_size != self.rank:
            return
        if self.store.folder.note_once(CHAOS, {"step": step, "rank": self.rank}):
            os.kill(os.getpid(), signal.SIGKILL)

    def _opening(self) -> str:
        start = f"resumed at step {self.state.step}" if self.state.step else "from the start"
        return f"training {self.run_url} on {self.world_size} workers, {start}"
