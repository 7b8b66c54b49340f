"""Rank 0's record of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline import storage
from pipeline.config.schema import TrackingSection
from pipeline.tracking.mirror import WandbMirror
from pipeline.tracking.panels import Panel
from pipeline.tracking.spool import Spool


class Tracker:
    """Writes metrics and samples of one attempt, going on where the checkpoint was.

    Args:
        folder: a local folder for the spooled files.
        run_url: the run's folder; its `metrics.jsonl` and `samples.jsonl` are taken over up to
            `resume_step`.
        config: the run's configuration, shown in W&B.
        settings: how W&B mirrors.
        resume_step: optimiser steps done; 0 starts afresh.
    """

    def __init__(
        self,
        folder: Path,
        *,
        run_url: str,
        config: dict[str, Any],
        settings: TrackingSection,
        resume_step: int,
    ) -> None:
        def spool(name: str, last: int) -> Spool:
            remote = storage.join(run_url, name)
            return Spool(folder / name, remote, lambda line: line["step"] <= last)

        self._metrics = spool("metrics.jsonl", resume_step)  # counts steps done
        self._samples = spool("samples.jsonl", resume_step - 1)  # counts from 0
        self._mirror = WandbMirror(run_url, config, settings)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Add a line of metrics after `step` optimiser steps."""
        self._metrics.add({"step": step, **metrics})
        self._mirror.log(step, metrics)

    def samples(self, step: int, ids: Sequence[str], crcs: Sequence[int]) -> None:
        """Add the samples of optimiser step `step` (from 0), in position order."""
        self._samples.add({"step": step, "ids": list(ids), "crcs": list(crcs)})

    def images(self, step: int, panels: Sequence[Panel]) -> None:
        """Show validation pictures in W&B."""
        self._mirror.images(step, panels)

    def files(self) -> dict[str, bytes]:
        """The run's files as they are now, to be put whole with a checkpoint."""
        files = {"metrics.jsonl": self._metrics.content()}
        samples = self._samples.content()
        return {**files, "samples.jsonl": samples} if samples else files

    def close(self) -> None:
        """Let W&B finish; bounded, and never an error of the run."""
        self._mirror.close()
