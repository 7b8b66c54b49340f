"""A sweep's configuration: what is searched, how, and the training configuration below it."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from pipeline.config import TrainConfig, config_path, load_train_config
from pipeline.config.load import read_yaml
from pipeline.errors import UserError
from pipeline.tune.space import check_space, sizes

SEARCHES = ("grid", "random", "tpe")
SCHEDULERS = ("none", "asha", "median")
POPULATION = "population-based training is refused: trials cannot exchange weights yet"


@dataclass(frozen=True)
class SweepConfig:
    """A whole sweep.

    Attributes:
        config: name or path of the training configuration.
        overrides: of it, for all trials.
        search: grid | random | tpe.
        trials: how many; a grid has as many as its space.
        seed: of the search.
        metric: what best means; a validation metric.
        scheduler: none | asha | median: whether poor trials are stopped early.
        reduction: of asha: of so many trials one goes on.
        concurrent: trials at once; 0 = as many as the cluster holds.
        retries: of a failing trial, beyond the run's own.
        space: training key -> {choice: [...]}, {uniform: [a, b]}, {loguniform: [a, b]} or
            {int: [a, b]}, both ends included.
    """

    config: str = "tiny"
    overrides: list[str] = field(default_factory=list)
    search: str = "random"
    trials: int = 8
    seed: int = 0
    metric: str = "val/psnr"
    scheduler: str = "none"
    reduction: int = 3
    concurrent: int = 0
    retries: int = 1
    space: dict[str, dict[str, list[Any]]] = field(default_factory=dict)

    def training(self, overrides: Sequence[str] = ()) -> TrainConfig:
        """The training configuration under all trials, checked."""
        return load_train_config(self.config, [*self.overrides, *overrides])


def load_sweep(name: str, overrides: Sequence[str]) -> SweepConfig:
    """Load and check a sweep; `overrides` of training keys hold for all trials.

    Raises:
        UserError: for anything unknown, out of range, or that cannot work.
    """
    path = config_path(name, "sweeps")
    values = read_yaml(path)
    known = {f.name: f for f in fields(SweepConfig)}
    for key in values:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f"; did you mean {close[0]}?" if close else f"; known: {', '.join(known)}"
            raise UserError(f"{path}: unknown key {key}{hint}")
    sweep = SweepConfig(**values)
    sweep = SweepConfig(**{**vars(sweep), "overrides": [*sweep.overrides, *overrides]})
    problems = list(_problems(sweep))
    if problems:
        raise UserError(f"{path}: {'; '.join(problems)}")
    check_space(sweep.space, sweep.training)
    return sweep


def _problems(sweep: SweepConfig) -> list[str]:
    problems = []
    if sweep.search not in SEARCHES:
        problems.append(f"search {sweep.search!r}: expected one of {', '.join(SEARCHES)}")
    if sweep.scheduler in ("pbt", "pb2"):
        problems.append(POPULATION)
    elif sweep.scheduler not in SCHEDULERS:
        problems.append(f"scheduler {sweep.scheduler!r}: expected one of {', '.join(SCHEDULERS)}")
    for name, least in (("trials", 1), ("reduction", 2), ("concurrent", 0), ("retries", 0)):
        value = getattr(sweep, name)
        if not isinstance(value, int) or value < least:
            problems.append(f"{name} must be at least {least}, got {value!r}")
    if not sweep.space:
        problems.append("space is empty: name at least one training key to search")
    if problems:
        return problems
    training = sweep.training()
    if not training.data.val:
        problems.append("data.val is empty: a sweep compares validation metrics")
    if sweep.scheduler != "none" and not training.train.validate_every:
        problems.append(f"scheduler {sweep.scheduler} needs train.validate_every above 0")
    if sweep.search == "grid" and sizes(sweep.space) is None:
        problems.append("a grid needs choices only: give each key {choice: [...]}")
    return problems
