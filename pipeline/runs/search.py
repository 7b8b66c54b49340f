"""Finding runs below a URL and reading what they left."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import yaml

from pipeline import storage
from pipeline.checkpoint import COMMIT, Checkpoint, CheckpointStore, open_checkpoint, ranked
from pipeline.errors import UserError

log = logging.getLogger("era")
DEPTH = 3  # folders searched below a URL: root / sweep / trial
CONFIG = "config.yaml"
PASSED_OVER = {"checkpoints", "wandb"}


@dataclass(frozen=True)
class Run:
    """A run's folder, read lazily.

    Args:
        url: the folder.
        only: look at this checkpoint alone, where the user named one.
    """

    url: str
    only: str = ""

    @property
    def name(self) -> str:
        """The folder's name."""
        return storage.name_of(self.url)

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.yaml; empty where it cannot be read, which a warning says."""
        try:
            values = yaml.safe_load(storage.read_text(storage.join(self.url, CONFIG)))
        except yaml.YAMLError:
            values = None
        if not isinstance(values, dict):
            log.warning("%s: %s is not valid YAML", self.url, CONFIG)
            return {}
        return values

    @cached_property
    def attempts(self) -> list[dict[str, Any]]:
        """Lines of attempts.jsonl."""
        return self._lines("attempts.jsonl")

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """Lines of metrics.jsonl, up to the newest checkpoint."""
        return self._lines("metrics.jsonl")

    @cached_property
    def checkpoints(self) -> list[Checkpoint]:
        """Committed checkpoints, oldest first, their weights unread."""
        found = CheckpointStore(self.url).all()
        return [c for c in found if not self.only or c.name == self.only]

    @property
    def step(self) -> int:
        """Steps that the newest checkpoint knows."""
        return self.checkpoints[-1].step if self.checkpoints else 0

    @property
    def steps(self) -> int:
        """Steps wanted."""
        return int(self.config.get("train", {}).get("steps", 0))

    def best(self, metric: str) -> Checkpoint | None:
        """The best checkpoint by a metric; None where none has it."""
        return next(iter(ranked(self.checkpoints, metric, lambda c: c.metrics)), None)

    def value(self, metric: str) -> float | None:
        """The best checkpoint's metric, else the last one in metrics.jsonl."""
        best = self.best(metric)
        if best is not None:
            return best.metrics[metric]
        rows = [row[metric] for row in self.metrics if row.get(metric) is not None]
        return float(rows[-1]) if rows and not self.only else None

    def _lines(self, name: str) -> list[dict[str, Any]]:
        url = storage.join(self.url, name)
        if not storage.exists(url):
            return []
        try:
            return [json.loads(line) for line in storage.read_text(url).splitlines() if line]
        except ValueError:
            log.warning("%s: damaged; its lines are left out", url)
            return []


def find_runs(url: str) -> list[Run]:
    """The runs that a URL means: a checkpoint's, a run, a sweep's trials, or all of a root.

    Raises:
        UserError: if nothing is there, or nothing that is a run.
    """
    url = storage.absolute(url)
    if storage.exists(storage.join(url, COMMIT)):
        return [_run_of_checkpoint(url)]
    if not storage.is_dir(url):
        raise UserError(
            f"{url}: no such folder; give a root of runs, a sweep, a run or a checkpoint"
        )
    runs = list(_search(url, DEPTH))
    if not runs:
        raise UserError(f"{url}: no run there (a run is a folder with {CONFIG})")
    return runs


def _run_of_checkpoint(url: str) -> Run:
    open_checkpoint(url)  # says what is wrong with it
    parent = url.rpartition("/")[0]
    run_url = parent.rpartition("/")[0]
    if storage.name_of(parent) != "checkpoints" or not _is_run(run_url):
        raise UserError(f"{url}: a checkpoint outside of a run; `era runs pull` takes it as it is")
    return Run(run_url, only=storage.name_of(url))


def _search(url: str, depth: int) -> Iterator[Run]:
    if _is_run(url):
        yield Run(url)
    elif depth:
        for name in storage.list_names(url):
            below = storage.join(url, name)
            if not name.startswith(".") and name not in PASSED_OVER and storage.is_dir(below):
                yield from _search(below, depth - 1)


def _is_run(url: str) -> bool:
    names = storage.list_names(url)
    return CONFIG in names and COMMIT not in names  # a bundle has both
