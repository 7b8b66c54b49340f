"""A sweep's configuration: what is searched, how, and the training configuration of all trials."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from pipeline.border import Count, Text, validated
from pipeline.config import TrainConfig, load_train_config
from pipeline.config.load import read_plain
from pipeline.config.schema import TrainSection
from pipeline.errors import UserError
from pipeline.tune.space import check_space, sizes

SEARCHES = ("grid", "random", "tpe")
SCHEDULERS = ("none", "asha", "median", "pbt")
MOST = 100_000  # of any count
METRICS = ("val/psnr", "val/ssim")
STOPPING = ("asha", "median")  # schedulers that stop trials early
# What may change between two steps of a run: the rest defines its network, data or schedule.
CHANGEABLE = (
    "learning_rate",
    "min_learning_rate",
    "scalar_rate",
    "weight_decay",
    "clip_norm",
    "ema",
)


@dataclass(frozen=True)
class SweepConfig:
    """A whole sweep.

    Attributes:
        config: name or path of the training configuration.
        overrides: its overrides for all trials.
        search: grid | random | tpe.
        trials: the number of trials; a grid has as many as its space has points.
        seed: of the search.
        metric: the validation metric by which trials are compared: val/psnr | val/ssim.
        scheduler: none | asha | median | pbt: whether, and by which rule, poor trials stop early,
            or go on from better ones' weights.
        reduction: asha only: one of this many trials continues at each rung.
        exchange_every: pbt only: steps between exchanges; 0 = train.validate_every.
        concurrent: trials at the same time; 0 = as many as the cluster holds.
        retries: how often a trial that fails is started again, beyond its run's own retries.
        space: training key -> {choice: [...]}, {uniform: [a, b]}, {loguniform: [a, b]} or
            {int: [a, b]}, both ends included.
    """

    config: Text = "tiny"
    overrides: list[Text] = field(default_factory=list)
    search: Text = "random"
    trials: Count = 8
    seed: Count = 0
    metric: Text = "val/psnr"
    scheduler: Text = "none"
    reduction: Count = 3
    exchange_every: Count = 0
    concurrent: Count = 0
    retries: Count = 1
    space: dict[Text, dict[str, list[JsonValue]]] = field(default_factory=dict)

    def training(self, overrides: Sequence[str] = ()) -> TrainConfig:
        """Return the checked training configuration of all trials."""
        return load_train_config(self.config, [*self.overrides, *overrides])


def load_sweep(name: str, overrides: Sequence[str]) -> SweepConfig:
    """Load and check a sweep; `overrides` of training keys apply to all trials.

    Raises:
        UserError: for anything unknown, out of range, or that cannot work.
    """
    values, where = read_plain(name, "sweeps")
    sweep = sweep_of(values, where)
    sweep = SweepConfig(**{**vars(sweep), "overrides": [*sweep.overrides, *overrides]})
    problems = _problems(sweep)
    if problems:
        raise UserError(f"{where}: {'; '.join(problems)}")
    check_space(sweep.space, sweep.training)
    return sweep


def sweep_of(values: dict[str, Any], where: Path | str) -> SweepConfig:
    """Check the keys and types of a sweep's values.

    Raises:
        UserError: naming every key that is unknown or has a value of another type.
    """
    known = [f.name for f in fields(SweepConfig)]
    for key in values:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
            hint = f"; did you mean {close[0]}?" if close else f"; known: {', '.join(known)}"
            raise UserError(f"{where}: unknown key {key}{hint}")
    return validated(SweepConfig, values, str(where))


def _problems(sweep: SweepConfig) -> list[str]:
    problems = []
    choices = {"search": SEARCHES, "metric": METRICS, "scheduler": SCHEDULERS}
    for name, known in choices.items():
        if getattr(sweep, name) not in known:
            problems.append(f"{name} {getattr(sweep, name)!r}: expected one of {', '.join(known)}")
    least = {
        "trials": 1,
        "seed": 0,
        "reduction": 2,
        "exchange_every": 0,
        "concurrent": 0,
        "retries": 0,
    }
    for name, bound in least.items():
        value = getattr(sweep, name)
        if not bound <= value <= MOST:
            problems.append(f"{name} must be between {bound} and {MOST}, got {value}")
    if not sweep.space:
        problems.append("space is empty: name at least one training key to search")
    return problems or _training_problems(sweep)


def _training_problems(sweep: SweepConfig) -> list[str]:
    problems = []
    training = sweep.training()
    if not training.data.val:
        problems.append("data.val is empty: a sweep compares validation metrics")
    if sweep.scheduler != "none" and not training.train.validate_every:
        problems.append(f"scheduler {sweep.scheduler} needs train.validate_every above 0")
    fixed = not {"train.steps", "train.validate_every"} & {*sweep.space}
    if sweep.scheduler != "none" and fixed and not _is_judged(training.train):
        problems.append(
            f"scheduler {sweep.scheduler} never decides: train.validate_every "
            f"{training.train.validate_every} is not less than train.steps {training.train.steps}"
        )
    if sweep.scheduler == "asha" and "train.steps" in sweep.space:
        problems.append("scheduler asha compares trials of equal train.steps: do not search them")
    if sweep.search == "grid" and sizes(sweep.space) is None:
        problems.append("a grid needs choices only: give each key {choice: [...]}")
    if sweep.search == "grid" and (points := sizes(sweep.space) or 0) > MOST:
        problems.append(f"the grid has {points} points; at most {MOST} are searched")
    if placing := [key for key in sweep.space if key.startswith("run.")]:
        problems.append(f"{', '.join(placing)} names the sweep's folder: it can't be searched")
    return problems or (_exchange_problems(sweep) if sweep.scheduler == "pbt" else [])


def _is_judged(train: TrainSection) -> bool:
    return not train.validate_every or train.validate_every < train.steps


def _exchange_problems(sweep: SweepConfig) -> list[str]:
    train, problems = sweep.training().train, []
    validate_every = train.validate_every
    if sweep.exchange_every >= train.steps:  # 0: train.validate_every, which is less
        problems.append(
            f"exchange_every {sweep.exchange_every}: expected less than train.steps, {train.steps}"
        )
    if sweep.exchange_every % validate_every:
        problems.append(
            f"exchange_every {sweep.exchange_every}: expected a multiple of train.validate_every, "
            f"{validate_every}"
        )
    known = [f"train.{name}" for name in CHANGEABLE]
    if fixed := [k for k in sweep.space if k not in known and not k.startswith("loss.")]:
        problems.append(
            f"scheduler pbt cannot change {', '.join(fixed)} within a run; it can change "
            f"{', '.join(known)} and keys of loss"
        )
    return problems
