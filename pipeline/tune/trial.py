"""One trial: a whole training run, driven from inside Tune."""

from __future__ import annotations

from typing import Any

from pipeline import storage
from pipeline.cluster import work_in
from pipeline.config import TrainConfig
from pipeline.train import train
from pipeline.train.driver_channel import Event
from pipeline.tune.config import SweepConfig
from pipeline.tune.space import Point, grid, overrides_of, random_points

INDEX = "index"  # Tune's parameter: the trial's number


def points_of(sweep: SweepConfig) -> list[Point] | None:
    """The points of all trials; None where a searcher chooses them one by one."""
    if sweep.search == "grid":
        return grid(sweep.space)
    return (
        random_points(sweep.space, sweep.trials, sweep.seed) if sweep.search == "random" else None
    )


def trial_name(parameters: dict[str, Any]) -> str:
    """A trial's folder, by its number in the sweep: the same after any interruption."""
    return f"trial-{parameters[INDEX]:03d}"


def point_of(sweep: SweepConfig, parameters: dict[str, Any]) -> Point:
    """A trial's point in the space."""
    points = points_of(sweep)
    if points is not None:
        return points[parameters[INDEX]]
    return {key: parameters[key] for key in sweep.space}


def trial_config(sweep: SweepConfig, parameters: dict[str, Any]) -> TrainConfig:
    """The training configuration of a trial: `<run.root>/<run.name>/<trial>/`."""
    point = point_of(sweep, parameters)
    config = sweep.training(overrides_of(point))
    config.tracking.group = config.tracking.group or config.run.name
    config.run.root = storage.absolute(storage.join(config.run.root, config.run.name))
    config.run.name = trial_name(parameters)
    return config


def run_trial(parameters: dict[str, Any], sweep: SweepConfig, folder: str) -> None:
    """Tune's trainable: train, reporting each validation; the same trial again goes on."""
    from ray import tune

    work_in(folder)
    config = trial_config(sweep, parameters)

    def report(event: Event) -> None:
        if event.checkpoint and sweep.metric in event.metrics:
            tune.report({**event.metrics, "step": event.step, "checkpoint_path": event.checkpoint})

    summary = train(config, on_event=report)
    # A run that was finished already reports its result again: Tune may not have heard it.
    if sweep.metric not in summary["metrics"]:
        raise RuntimeError(f"{summary['run']}: ended without {sweep.metric}")
    tune.report({**summary["metrics"], "step": summary["step"], "checkpoint_path": summary["best"]})
