"""What each Ray Train worker runs: resume, step, validate, save."""

from __future__ import annotations

import resource
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from pipeline.checkpoint import CheckpointStore
from pipeline.checkpoint.store import LoadedCheckpoint
from pipeline.config import to_plain
from pipeline.data.loader import TrainLoader
from pipeline.runfolder import RunFolder
from pipeline.tracking import Tracker
from pipeline.train.driver_channel import DriverChannel, Event
from pipeline.train.incidents import Incidents
from pipeline.train.interruptions import Interruptions, NodeTakenAway
from pipeline.train.lineage import Lineage
from pipeline.train.loop import Loop, StepResult, gather_lists
from pipeline.train.payload import Payload
from pipeline.train.setup import imitated, open_splits, order_plan, prepare_torch
from pipeline.train.state import TrainState
from pipeline.train.validate import validate


class Worker:
    """One rank of a run, resumed from the newest checkpoint."""

    def __init__(self, payload: Payload, rank: int, world_size: int) -> None:
        self.config = config = payload.config
        self.run_url, self.rank, self.world_size = payload.run_url, rank, world_size
        self.gated = payload.gated
        self.channel = DriverChannel(payload.channel)
        self.device = prepare_torch(config)
        self.train_split, self.val_split = splits = open_splits(config)
        self.state = TrainState(config, self.device)
        self.lineage = Lineage(config, self.state.model.config, splits, world_size)
        self.owner = self._attempt(payload.owner)
        self.store = CheckpointStore(self.run_url, self._require_owner, self.owner)
        earlier = self._resume()
        self.saved_step = self.state.step or -1
        self.spool = tempfile.TemporaryDirectory(prefix="era-spool-")
        self.tracker = self._tracker(earlier) if rank == 0 else None
        self.last_step = min(config.debug.stop_at or config.train.steps, config.train.steps)
        self.loader = self._loader()
        self.interruptions = Interruptions(
            config, self.store.folder, self.channel, rank, world_size, payload.preemptible
        )
        self.incidents = Incidents(self.store.folder, self.channel, rank, self.loader.skipped)

    def run(self) -> None:
        """Train to the last step, or until the run is asked to stop."""
        if self.rank == 0:
            self.channel.tell(Event(self.state.step, line=self._opening()))
            if advice := imitated(self.config.train.precision, self.device):
                self.channel.tell(Event(self.state.step, line=advice))
        loop = Loop(
            self.config,
            self.state,
            self.loader,
            self.device,
            self.train_split.has_radius,
            votes=self.interruptions.votes,
            on_skip=self.incidents.not_finite,
        )
        loop.run(self._step_done)
        self.store.wait()
        self.channel.flush()

    def close(self) -> None:
        """Stop threads and close files."""
        self.loader.close()
        if self.tracker is not None:
            self.tracker.close()
        self.spool.cleanup()

    def _attempt(self, begun: str) -> str:
        """The attempt of this group of workers: the command's, or one of its own."""
        folder = RunFolder(self.run_url)
        if self.rank != 0:
            folder.require_visible(begun)
            return begun
        first = self.channel.first_group()
        return folder.begin_group(self.config, folder.latest_step(), begun, first)

    def _require_owner(self) -> None:
        self.store.folder.require_owner(self.owner)

    def _resume(self) -> dict[str, bytes]:
        """Restore the newest sound checkpoint, which rank 0 reads for all; return its run files."""
        loaded = self.store.load_latest() if self.rank == 0 else None
        if self.world_size > 1:
            loaded, meta = self._from_rank_0(loaded)
            self.lineage.refuse_unequal_data(meta)
        if loaded is None:
            return {}
        meta = loaded.checkpoint.meta
        self.lineage.refuse_other_data(meta, self.run_url)
        self.state.restore(loaded.weights, loaded.training)
        changes = self.lineage.changes(meta)
        if self.rank == 0 and changes:
            self.channel.tell(Event(self.state.step, line=changes, warning=True))
        return loaded.run_files

    def _from_rank_0(
        self, loaded: LoadedCheckpoint | None
    ) -> tuple[LoadedCheckpoint | None, dict[str, Any]]:
        """The same checkpoint on all ranks, and the origin of what rank 0 would write; only rank 0
        keeps the run's files."""
        shared: list[Any] = [None, self.lineage.meta(0)]
        if loaded is not None:
            assert loaded.checkpoint.meta  # read here, and sent with it
            shared[0] = replace(loaded, run_files={})
        dist.broadcast_object_list(shared)
        return loaded or shared[0], shared[1]

    def _tracker(self, earlier: dict[str, bytes]) -> Tracker:
        return Tracker(
            Path(self.spool.name),
            run_url=self.run_url,
            config=to_plain(self.config),
            settings=self.config.tracking,
            resume_step=self.state.step,
            lineage=self.lineage.meta(self.state.step),
            earlier=earlier,
        )

    def _loader(self) -> TrainLoader:
        config = self.config
        return TrainLoader(
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
            pinned=self.device.type == "cuda",
        )

    def _opening(self) -> str:
        start = f"resumed at step {self.state.step}" if self.state.step else "from the start"
        return f"training {self.run_url} on {self.world_size} workers, {start}"

    def _step_done(self, result: StepResult) -> None:
        config, step = self.config, self.state.step
        self.state.averages.add(result.values)
        if config.debug.log_samples:
            self._log_samples(result)
        if step % config.tracking.log_every == 0 or step == config.train.steps:
            self._log_step()
            if config.data.skip_damaged:
                self.incidents.tell_damaged(step)
        validated = self._validate_now(step)
        metrics = self._validate() if validated else {}
        decision = self.interruptions.decide(result.agreed)
        due = step == self.last_step or step % config.checkpoint.every == 0
        if validated or decision.stop or decision.drain or due:
            self._save(metrics)
        if decision.drain or decision.stop:
            self.store.wait()
        if decision.drain and not decision.stop:
            if self.rank == 0:
                self.channel.leave()
            raise NodeTakenAway(step)
        if decision.stop or (validated and self._stopped_for_its_result()):
            self.loader.stop()
        self.interruptions.strike(step)

    def _stopped_for_its_result(self) -> bool:
        """In a gated run, wait for the decision about a validation; every rank must ask."""
        if not self.gated or self.state.step == self.last_step:
            return False
        self.store.wait()
        return self.interruptions.stopped_for_its_result()

    def _validate_now(self, step: int) -> bool:
        every, last = self.config.train.validate_every, step == self.config.train.steps
        return last or bool(every and step % every == 0)

    def _log_samples(self, result: StepResult) -> None:
        batch = result.batch
        pairs = gather_lists(list(zip(batch.ids, batch.crcs, strict=True)))
        if self.tracker is not None:
            ids, crcs = zip(*pairs, strict=True)
            self.tracker.samples(batch.step, ids, crcs)

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
        if self.val_split is None:
            return {}
        metrics, panels = validate(
            self.state.ema,
            self.val_split,
            self.rank,
            self.world_size,
            self.config.tracking.images,
            self.channel.should_stop if self.rank == 0 else lambda: None,  # the driver waits
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
            meta=self.lineage.meta(self.state.step),
            files=self.tracker.files(),
            metrics=metrics,
            keep_best=self.config.checkpoint.keep_best,
        )
