"""Finding runs below a URL and reading what they left."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pipeline import storage
from pipeline.config.load import parse_plain
from pipeline.errors import StorageDown, UserError
from pipeline.runfolder import (
    Checkpoint,
    RunFolder,
    best_first,
    is_run,
    open_checkpoint,
    run_of_checkpoint,
)
from pipeline.runfolder.lines import Line, is_number
from pipeline.runfolder.names import (
    ATTEMPT_FOLDER,
    ATTEMPTS,
    CHECKPOINTS,
    COMMIT,
    CONFIG,
    LOGS,
    METRICS,
    WANDB,
)

log = logging.getLogger("era")
DEPTH = 3  # folders searched below a URL: root / sweep / trial
# The last is of a volume's root, and can't be read.
NOT_SEARCHED = {ATTEMPT_FOLDER, CHECKPOINTS, LOGS, WANDB, "lost+found"}


@dataclass(frozen=True)
class Run:
    """A run's folder, read lazily. What is damaged is left out with a warning.

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
        """config.yaml; empty where it is damaged."""
        url = storage.join(self.url, CONFIG)
        try:
            return parse_plain(storage.read_text(url), url)
        except StorageDown:
            raise
        except UserError:
            log.warning("%s: not the configuration of a run; it is left out", url)
            return {}

    def section(self, name: str) -> dict[str, Any]:
        """A section of config.yaml; empty if it is missing or not a mapping."""
        found = self.config.get(name)
        return found if isinstance(found, dict) else {}

    @cached_property
    def attempts(self) -> list[Line]:
        """Lines of attempts.jsonl."""
        return self._lines(ATTEMPTS)

    @cached_property
    def metrics(self) -> list[Line]:
        """Lines of metrics.jsonl, up to the newest checkpoint."""
        return self._lines(METRICS)

    @cached_property
    def checkpoints(self) -> list[Checkpoint]:
        """Committed checkpoints, oldest first, their weights unread."""
        try:
            found = RunFolder(self.url).checkpoints()
        except StorageDown:
            raise
        except UserError as error:
            log.warning("%s; the checkpoints of this run are left out", error)
            return []
        return [c for c in found if not self.only or c.name == self.only]

    @property
    def step(self) -> int:
        """Step of the newest checkpoint; 0 without any."""
        return self.checkpoints[-1].step if self.checkpoints else 0

    @property
    def steps(self) -> int:
        """Steps wanted; 0 where config.yaml does not say."""
        steps = self.section("train").get("steps")
        return int(steps) if is_number(steps) else 0

    def best(self, metric: str) -> Checkpoint | None:
        """The best checkpoint by a metric; None where none has it."""
        return next(iter(best_first(self.checkpoints, metric)), None)

    def value(self, metric: str) -> float | None:
        """The best checkpoint's metric, else the last one in metrics.jsonl."""
        best = self.best(metric)
        if best is not None:
            return best.metrics[metric]
        values = [row[metric] for row in self.metrics if is_number(row.get(metric))]
        return float(values[-1]) if values and not self.only else None

    def _lines(self, name: str) -> list[Line]:
        try:
            return RunFolder(self.url).lines(name)
        except StorageDown:
            raise
        except UserError as error:
            log.warning("%s; its lines are left out", error)
            return []


def find_runs(url: str) -> list[Run]:
    """The runs that a URL means: a checkpoint's, a run, a sweep's trials, or all of a root.

    Raises:
        UserError: if nothing is there, or nothing that is a run.
    """
    url = storage.absolute(url)
    if storage.exists(storage.join(url, COMMIT)):
        open_checkpoint(url)  # raises an error that says what is wrong with it
        return [Run(run_of_checkpoint(url), only=storage.name_of(url))]
    if not storage.is_dir(url):
        raise UserError(
            f"{url}: no such folder; give a root of runs, a sweep, a run or a checkpoint"
        )
    runs = list(_search(url, DEPTH))
    if not runs:
        raise UserError(f"{url}: no run there (a run is a folder with {CONFIG})")
    return runs


def _search(url: str, depth: int) -> Iterator[Run]:
    if is_run(url):
        yield Run(url)
    elif depth:
        for name in storage.list_names(url):
            below = storage.join(url, name)
            if not name.startswith(".") and name not in NOT_SEARCHED and storage.is_dir(below):
                yield from _search(below, depth - 1)
