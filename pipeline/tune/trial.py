"""One trial: a whole training run, driven from inside Tune."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

from pipeline import storage
from pipeline.cluster import work_in
from pipeline.config import TrainConfig
from pipeline.errors import Stopped
from pipeline.runfolder import require_owner
from pipeline.runs.search import Run
from pipeline.train import train
from pipeline.train.driver_channel import Event
from pipeline.train.failures import root_cause
from pipeline.tune.config import STOPPING, SweepConfig
from pipeline.tune.record import read_record
from pipeline.tune.space import Point, grid, overrides_of, random_points, sizes

INDEX = "index"  # Tune's parameter: the trial's number
RUN = "run"  # another: the name of its run
UNTIL = "until"  # another: the step at which it ends for now
LINE = "line"  # in a report: a line of the run, for the log
FAILED = "trial failed: "  # in front of the reason, which `era tune` reads from Tune's text


def trial_count(sweep: SweepConfig) -> int:
    """The number of trials: the size of a grid, else as configured."""
    return (sizes(sweep.space) or 0) if sweep.search == "grid" else sweep.trials


def points_of(sweep: SweepConfig) -> list[Point] | None:
    """The points of all trials; None where each depends on the results of others."""
    if sweep.search == "grid":
        return grid(sweep.space)
    return (
        random_points(sweep.space, sweep.trials, sweep.seed) if sweep.search == "random" else None
    )


def trial_name(index: int) -> str:
    """The name of a trial's folder, by its number in the sweep."""
    return f"trial-{index:03d}"


def trial_config(
    sweep: SweepConfig, index: int, point: Point, name: str = "", until: int = 0
) -> TrainConfig:
    """The training configuration of a trial: `<run.root>/<run.name>/<trial>/`.

    Args:
        name: of its run, where it is not the trial's.
        until: the step at which it ends for now; 0: the last.
    """
    config = sweep.training(overrides_of(point))
    root = storage.absolute(storage.join(config.run.root, config.run.name))
    stop_at = until if 0 < until < config.train.steps else config.debug.stop_at
    group = config.tracking.group or config.run.name
    return replace(
        config,
        run=replace(config.run, root=root, name=name or trial_name(index)),
        debug=replace(config.debug, stop_at=stop_at),
        tracking=replace(config.tracking, group=group),
    )


def results_of(run: Run, metric: str) -> dict[int, float]:
    """A run's finite values of a metric, by step."""
    rows = ((row.get("step"), row.get(metric)) for row in run.metrics)
    return {
        step: value
        for step, value in rows
        if isinstance(step, int) and isinstance(value, float) and math.isfinite(value)
    }


def run_trial(
    parameters: dict[str, Any],
    sweep: SweepConfig,
    url: str,
    owner: str,
    folder: str,
    channel: Any,
) -> None:
    """Tune's trainable: trains, reporting each validation; the same trial again resumes its run.

    Args:
        parameters: Tune's: the trial's number, its run, and where it ends. url: the sweep's folder.
        owner: the command's attempt of the sweep.
        folder: the command's working folder, for relative paths.
        channel: to the command, which may ask the trial to save and end.

    Raises:
        RuntimeError: for any failure, with its reason in one line.
    """
    work_in(folder)
    try:
        require_owner(url, owner, "sweep")  # else it would take its run over from its successor
        _Trial(sweep, url, owner, parameters, channel).run()
    except Exception as error:
        raise RuntimeError(f"{FAILED}{root_cause(error)}") from None


class _Trial:
    def __init__(
        self, sweep: SweepConfig, url: str, owner: str, parameters: dict[str, Any], channel: Any
    ) -> None:
        self.channel, self.owner = channel, owner
        self.require_owner = partial(require_owner, url, owner, "sweep")
        self.metric, self.stoppable = sweep.metric, sweep.scheduler in STOPPING
        self.url = storage.join(url, parameters[RUN])
        record = read_record(self.url, owner)
        if record is None:
            raise RuntimeError(f"{self.url}: its record is missing")
        self.judged = record.judged
        where = parameters[RUN], parameters[UNTIL]
        self.config = trial_config(sweep, parameters[INDEX], record.point, *where)

    def run(self) -> None:
        if self._sweep_ends():
            return
        if self.stoppable and self._stopped_by_past_results():
            return
        try:
            summary = train(
                self.config,
                on_event=self._on_event,
                gated=self.stoppable,
                ask=self._sweep_ends,
                may_begin=self.require_owner,
            )
        except Stopped:
            if self._is_stopped() or self._sweep_ends():
                return
            raise
        # A run that was finished already reports its result again: Tune may not have it.
        if self.metric not in summary["metrics"]:
            raise RuntimeError(f"{summary['run']}: ended without {self.metric}")
        self._report(summary["step"], summary["metrics"])

    def _stopped_by_past_results(self) -> bool:
        """Report validations that the command was killed before it could decide about."""
        for step, value in results_of(Run(self.url), self.metric).items():
            if step > self.judged:
                self._report(step, {self.metric: value})
                if self._is_stopped():
                    return True
        return False

    def _on_event(self, event: Event) -> bool:
        """Report a validation or a line; returns whether to save a checkpoint and stop."""
        if event.line:
            self._report(event.step, {LINE: event.line})
        if not event.checkpoint or self.metric not in event.metrics:
            return False
        self._report(event.step, event.metrics)
        return self.stoppable and self._is_stopped()

    def _report(self, step: int, values: dict[str, Any]) -> None:
        """Hand values to Tune; returns when the scheduler has decided about them."""
        from ray import tune

        wanted = {key: values[key] for key in (self.metric, LINE) if key in values}
        tune.report({**wanted, "step": step})

    def _sweep_ends(self) -> bool:
        import ray

        return bool(ray.get(self.channel.exchange.remote([])))

    def _is_stopped(self) -> bool:
        record = storage.retry_outages(lambda: read_record(self.url, self.owner), self.url)
        return record is not None and record.stopped_at > 0
