"""`RunFolder`: the one place that knows how a run's folder is laid out, and which of its
checkpoints is the best and the latest."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator

from pipeline import storage
from pipeline.config import TrainConfig
from pipeline.errors import DamagedError, UserError
from pipeline.runfolder.attempts import begin_attempt, require_owner
from pipeline.runfolder.checkpoint import Checkpoint
from pipeline.runfolder.commit import Commit, is_count, read_commit, read_object
from pipeline.runfolder.frozen import freeze
from pipeline.runfolder.lines import Line, format_line, read_lines
from pipeline.runfolder.names import (
    CHECKPOINTS,
    COMMIT,
    CONFIG,
    NEWEST,
    checkpoint_name,
    step_of,
)
from pipeline.runfolder.ranking import ranked

log = logging.getLogger("era")
BEST_BY = "val/psnr"
Warn = Callable[[str], None]


class RunFolder:
    """A run's folder.

    A checkpoint counts where COMMIT is sound and every file that it names has the size that it
    says. Contents are verified where they are loaded.

    Args:
        url: local or remote.
        warn: receives a line for each unfinished or damaged checkpoint that is passed over.
    """

    def __init__(self, url: str, warn: Warn = log.warning) -> None:
        self.url, self.warn = url, warn
        self.checkpoints_url = storage.join(url, CHECKPOINTS)

    @property
    def name(self) -> str:
        """The folder's name."""
        return storage.name_of(self.url)

    def file(self, name: str) -> str:
        """URL of one of the run's files."""
        return storage.join(self.url, name)

    def checkpoint_url(self, step: int) -> str:
        """URL of a step's checkpoint."""
        return storage.join(self.checkpoints_url, checkpoint_name(step))

    def freeze(self, config: TrainConfig) -> None:
        """Write config.yaml, or refuse a configuration with another frozen part."""
        freeze(self.url, config)

    def begin_attempt(self, config: TrainConfig, resumed_from: int | None) -> str:
        """Record that an attempt begins; return its id, which makes it the owner."""
        return begin_attempt(self.url, config, resumed_from)

    def require_owner(self, attempt: str) -> None:
        """Raise a `UserError` where a newer attempt has taken the run over."""
        require_owner(self.url, attempt)

    def lines(self, name: str) -> list[Line]:
        """The objects of one of its JSON-lines files; none where it is missing."""
        return read_lines(self.file(name))

    def note_once(self, name: str, line: Line) -> bool:
        """Add a line to a small file unless its step has one; return whether it was added."""
        url = self.file(name)
        lines = read_lines(url)
        if any(other.get("step") == line["step"] for other in lines):
            return False
        storage.write_text(url, "".join(map(format_line, [*lines, line])))
        return True

    def steps(self) -> list[int]:
        """Steps of the checkpoints that have a COMMIT, oldest first; nothing is read."""
        listed = self._listed()
        newest = self._newest()
        found = {step for step, sizes in listed.items() if COMMIT in sizes}
        if newest is not None and storage.exists(storage.join(self.checkpoint_url(newest), COMMIT)):
            found.add(newest)
        return sorted(found)

    def newest_first(self) -> Iterator[Checkpoint]:
        """The checkpoints that count, newest first; a warning for each that is passed over."""
        listed = self._listed()
        known = set(listed) | {step for step in [self._newest()] if step is not None}
        for step in sorted(known, reverse=True):
            try:
                yield self._look(step, listed.get(step))
            except DamagedError as error:
                if step in listed:
                    self.warn(f"checkpoint passed over: {error}")

    def checkpoints(self) -> list[Checkpoint]:
        """The checkpoints that count, oldest first."""
        return list(self.newest_first())[::-1]

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint that counts."""
        return next(self.newest_first(), None)

    def best(self, metric: str = BEST_BY) -> Checkpoint | None:
        """The checkpoint with the best value of a metric; None where none has it."""
        return next(iter(best_first(self.checkpoints(), metric)), None)

    def best_then_latest(self, metric: str = BEST_BY) -> list[Checkpoint]:
        """All that count: the best by a metric first, then those without it, newest first."""
        found = self.checkpoints()
        best = best_first(found, metric)
        return [*best, *(c for c in found[::-1] if c not in best)]

    def note_newest(self, step: int, attempt: str) -> None:
        """Remember the newest checkpoint by name: a listing may be late, a read is not."""
        url = storage.join(self.checkpoints_url, NEWEST)
        storage.write_json(url, {"step": step, "attempt": attempt})

    def listed_steps(self) -> list[int]:
        """Steps of all folders of checkpoints, whole or not, oldest first."""
        found = (step_of(name) for name in storage.list_names(self.checkpoints_url))
        return sorted(step for step in found if step is not None)

    def _look(self, step: int, sizes: dict[str, int] | None) -> Checkpoint:
        url = self.checkpoint_url(step)
        try:
            commit = _read_commit(url, step)
        except DamagedError:  # read twice before it counts as damaged
            commit = _read_commit(url, step)
        checkpoint = Checkpoint(url, commit)
        if sizes is not None:
            try:
                checkpoint.require_sizes(sizes)
            except DamagedError:
                checkpoint.require_sizes({e.relative: e.size for e in storage.find(url)})
        return checkpoint

    def _listed(self) -> dict[int, dict[str, int]]:
        """By step, the sizes of the files of each folder, by name."""
        found: dict[int, dict[str, int]] = defaultdict(dict)
        for entry in storage.find(self.checkpoints_url):
            folder, _, name = entry.relative.partition("/")
            step = step_of(folder)
            if step is not None and name:
                found[step][name] = entry.size
        return dict(found)

    def _newest(self) -> int | None:
        url = storage.join(self.checkpoints_url, NEWEST)
        try:
            step = read_object(url).get("step") if storage.exists(url) else None
        except DamagedError:
            return None  # an aid only: the listing still has them
        return step if is_count(step) else None


def best_first(checkpoints: list[Checkpoint], metric: str) -> list[Checkpoint]:
    """The checkpoints that have a metric, best first; of equals the later first."""
    return ranked(checkpoints, metric, lambda checkpoint: checkpoint.metrics)


def is_run(url: str) -> bool:
    """Whether a folder is a run's: it has config.yaml, and is no bundle."""
    names = storage.list_names(url)
    return CONFIG in names and COMMIT not in names


def _read_commit(url: str, step: int) -> Commit:
    commit = read_commit(url)
    if commit.step != step:
        raise DamagedError(f"{storage.join(url, COMMIT)}: damaged (it is of step {commit.step})")
    return commit


def run_of_checkpoint(url: str) -> str:
    """URL of the run whose checkpoint a URL names.

    Raises:
        UserError: if it is not within a run.
    """
    parent = url.rpartition("/")[0]
    run_url = parent.rpartition("/")[0]
    if storage.name_of(parent) != CHECKPOINTS or not run_url or not is_run(run_url):
        raise UserError(f"{url}: a checkpoint outside of a run; name one that is within its run")
    return run_url
