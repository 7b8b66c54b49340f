"""Rank 0's record of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline import storage
from pipeline.case import Case
from pipeline.config.schema import TrackingSection
from pipeline.runfolder.names import METRICS, RUN_FILES, SAMPLES
from pipeline.tracking.mirror import WandbMirror
from pipeline.tracking.spool import Spool


class Tracker:
    """Writes metrics and samples of one attempt, continuing from the checkpoint.

    Args:
        folder: a local folder for the spooled files.
        run_url: the run's folder; its `metrics.jsonl` and `samples.jsonl` are kept up to
            `resume_step`.
        config: the run's configuration, shown in W&B.
        settings: how W&B mirrors.
        resume_step: optimiser steps done; 0 for a new run.
        lineage: the run's origin (hashes, versions), shown in W&B with the configuration.
        earlier: metrics.jsonl and samples.jsonl as the checkpoint has them; the run's own files are
            read only where it has none.

    Raises:
        UserError: if a file of the run to be continued is damaged.
    """

    def __init__(
        self,
        folder: Path,
        *,
        run_url: str,
        config: dict[str, Any],
        settings: TrackingSection,
        resume_step: int,
        lineage: dict[str, Any] | None = None,
        earlier: Mapping[str, bytes] | None = None,
    ) -> None:
        # metrics.jsonl counts steps done, samples.jsonl counts steps from 0.
        last = resume_step if resume_step > 0 else -1
        metrics, samples = (storage.join(run_url, name) for name in RUN_FILES)
        copies = earlier or {}
        self._metrics = Spool(folder / METRICS, metrics, last, copies.get(METRICS), True)
        self._samples = Spool(folder / SAMPLES, samples, resume_step - 1, copies.get(SAMPLES))
        self._step = resume_step
        shown = {**config, "lineage": lineage} if lineage else config
        self._mirror = WandbMirror(run_url, self._metrics, shown, settings)
        self._mirror.seal(resume_step)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Add a line of metrics after `step` optimiser steps."""
        self._metrics.add({"step": step, **metrics})
        if step > self._step:
            self._mirror.seal(self._step)
            self._step = step

    def samples(self, step: int, ids: Sequence[str], crcs: Sequence[int]) -> None:
        """Add the samples of optimiser step `step` (from 0), in position order."""
        self._samples.add({"step": step, "ids": list(ids), "crcs": list(crcs)})

    def images(self, step: int, cases: Sequence[Case]) -> None:
        """Show validation pictures in W&B."""
        self._mirror.images(step, cases)

    def files(self) -> dict[str, bytes]:
        """The run's files as they are now, to be stored with a checkpoint.

        Called after a step: no more of its rows may follow.
        """
        self._mirror.seal(self._step)
        files = {METRICS: self._metrics.content()}
        samples = self._samples.content()
        return {**files, SAMPLES: samples} if samples else files

    def close(self) -> None:
        """Let W&B finish, for a bounded time; its failures are no error of the run."""
        self._mirror.close()
