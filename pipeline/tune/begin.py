"""`sweep.yaml`: what a sweep began with; another sweep is refused in its folder."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any

import yaml

from pipeline import storage
from pipeline.config import parse_plain, parse_train_config
from pipeline.errors import UserError
from pipeline.runfolder import frozen_part
from pipeline.tune.config import SweepConfig, sweep_of

FILE = "sweep.yaml"
TRAINING = "training"  # the part of the training configuration that defines the results
FREE = ("concurrent", "retries", "config", "overrides", "trials")


def begin(url: str, sweep: SweepConfig, resumed: bool) -> None:
    """Write `sweep.yaml` at a sweep's first start; later, refuse another sweep.

    What does not define the results (retries, workers, tracking, ...) may change between starts,
    and so may the number of trials, upwards.

    Args:
        resumed: whether the folder has a `sweep.yaml`.

    Raises:
        UserError: if the folder belongs to another sweep, or to something else.
    """
    place = storage.join(url, FILE)
    values = {**asdict(sweep), TRAINING: frozen_part(sweep.training())}
    text = yaml.safe_dump(values, sort_keys=False)
    if not resumed:
        names = storage.list_names(url)
        others = [name for name in names if not name.startswith(".")]
        if others and FILE not in names:
            raise UserError(f"sweep {url}: the folder holds {others[0]}; choose another run.name")
        if storage.create(place, text.encode()):  # else: another command has just begun it
            return
    if _is_continued(place, sweep):
        storage.write_text(place, text)


def _is_continued(place: str, sweep: SweepConfig) -> bool:
    """Compare a sweep with the one that began; returns whether trials were added."""
    url = place.removesuffix(f"/{FILE}")
    values = _read(place)
    training = values.pop(TRAINING, None)
    before = sweep_of(values, place)
    names = [field.name for field in fields(sweep) if field.name not in FREE]
    changed = [name for name in names if getattr(before, name) != getattr(sweep, name)]
    if sweep.search == "grid" and before.space == sweep.space and [*before.space] != [*sweep.space]:
        changed.append("order of the space's keys, which numbers a grid's points")
    if before.trials > sweep.trials:
        changed.append("trials (they can only grow)")
    if training is not None and not _same_training(training, sweep, place):
        changed.append("training configuration")
    if changed:
        raise UserError(
            f"sweep {url}: it began with another {', '.join(changed)}; choose another run.name"
        )
    return before.trials < sweep.trials


def _same_training(values: Any, sweep: SweepConfig, place: str) -> bool:
    """Compare through today's schema, which fills in keys that an older version did not have."""
    if not isinstance(values, dict):
        raise UserError(f"{place}: {TRAINING}: expected a mapping of keys")
    before = parse_train_config(yaml.safe_dump(values), place)
    return frozen_part(before) == frozen_part(sweep.training())


def _read(place: str) -> dict[str, Any]:
    values = parse_plain(storage.read_text(place), place)
    if not values:
        raise UserError(f"{place}: it is empty; restore it, or choose another run.name")
    return values
