"""`RunFolder`: the one place that knows how a run's folder is laid out, and which of its
checkpoints is the best and the latest."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import groupby

from pipeline import storage
from pipeline.config import TrainConfig
from pipeline.errors import DamagedError, UserError
from pipeline.runfolder.attempts import (
    attempt_key,
    begin_attempt,
    begin_group,
    require_command,
    require_owner,
    require_visible,
)
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

    def checkpoint_url(self, name: str) -> str:
        """URL of a checkpoint's folder."""
        return storage.join(self.checkpoints_url, name)

    def freeze(self, config: TrainConfig) -> None:
        """Write config.yaml, or refuse a configuration with another frozen part."""
        freeze(self.url, config)

    def begin_attempt(self, config: TrainConfig, resumed_from: int | None) -> str:
        """Record that an attempt begins; return its id, which makes it the owner."""
        return begin_attempt(self.url, config, resumed_from)

    def begin_group(
        self, config: TrainConfig, resumed_from: int | None, attempt: str, first: bool
    ) -> str:
        """The attempt of a group of workers of the command that has begun `attempt`."""
        return begin_group(self.url, config, resumed_from, attempt, first)

    def require_visible(self, attempt: str) -> None:
        """Raise a `UserError` where this node does not see the command's attempt."""
        require_visible(self.url, attempt)

    def require_command(self, attempt: str) -> None:
        """Raise a `UserError` where another command than the attempt's has taken the run over."""
        require_command(self.url, attempt)

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
        return sorted({step for step in map(step_of, self.committed()) if step is not None})

    def latest_step(self) -> int | None:
        """Step of the newest checkpoint that has a COMMIT; nothing is read."""
        return max(self.steps(), default=None)

    def committed(self) -> list[str]:
        """Names of the folders that have a COMMIT, by step; nothing is read."""
        found = {name for name, sizes in self._listed().items() if COMMIT in sizes}
        newest = self._newest()
        if newest and storage.exists(storage.join(self.checkpoint_url(newest), COMMIT)):
            found.add(newest)
        return _by_step(found)

    def newest_first(self) -> Iterator[Checkpoint]:
        """All sound ones, newest first; of one step, the newest attempt's first.

        Warns of each one that is skipped.
        """
        listed = self._listed()
        names = _by_step({*listed, *filter(None, [self._newest()])})
        for _, group in groupby(reversed(names), key=step_of):
            found = [self._sound(name, listed.get(name)) for name in group]
            yield from sorted(filter(None, found), key=_age, reverse=True)

    def checkpoints(self) -> list[Checkpoint]:
        """The checkpoints that count, oldest first; of a step, the newest attempt's."""
        return newest_of_each_step(list(self.newest_first()))

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint that counts."""
        return next(self.newest_first(), None)

    def best(self) -> Checkpoint | None:
        """The checkpoint with the best val/psnr; None where none has been validated."""
        return next(iter(best_first(self.checkpoints(), BEST_BY)), None)

    def best_then_latest(self, metric: str) -> list[Checkpoint]:
        """All that count: the best by a metric first, then those without it, newest first."""
        found = self.checkpoints()
        best = best_first(found, metric)
        return [*best, *(c for c in found[::-1] if c not in best)]

    def note_newest(self, name: str, attempt: str) -> None:
        """Remember the newest checkpoint by name: a listing may be late, a read is not."""
        url = storage.join(self.checkpoints_url, NEWEST)
        storage.write_json(url, {"step": step_of(name), "name": name, "attempt": attempt})

    def listed_names(self) -> list[str]:
        """Names of all folders of checkpoints, whole or not, by step."""
        return _by_step(set(storage.list_names(self.checkpoints_url)))

    def _sound(self, name: str, sizes: dict[str, int] | None) -> Checkpoint | None:
        try:
            return self._look(name, sizes)
        except DamagedError as error:
            if sizes is not None:
                self.warn(f"checkpoint passed over: {error}")
            return None

    def _look(self, name: str, sizes: dict[str, int] | None) -> Checkpoint:
        url, step = self.checkpoint_url(name), step_of(name) or 0
        try:
            commit = _read_commit(url, step)
        except DamagedError:  # read twice before it counts as damaged
            commit = _read_commit(url, step)
        checkpoint = Checkpoint(url, commit)
        if sizes is not None:
            try:
                checkpoint.require_sizes(sizes)
            except DamagedError:  # the listing may be late; asked by name, the store is not
                checkpoint.require_sizes(_sizes(checkpoint))
        return checkpoint

    def _listed(self) -> dict[str, dict[str, int]]:
        """By name, the sizes of the files of each folder, by name."""
        found: dict[str, dict[str, int]] = defaultdict(dict)
        for entry in storage.find(self.checkpoints_url):
            folder, _, name = entry.relative.partition("/")
            if step_of(folder) is not None and name:
                found[folder][name] = entry.size
        return dict(found)

    def _newest(self) -> str:
        """The name in `newest.json`; empty where it has none. Earlier versions wrote a step."""
        url = storage.join(self.checkpoints_url, NEWEST)
        try:
            found = read_object(url) if storage.exists(url) else {}
        except DamagedError:
            return ""  # only an aid: the listing still shows the checkpoints
        step, name = found.get("step"), found.get("name")
        if isinstance(name, str):
            return name if step_of(name) is not None else ""
        return checkpoint_name(int(step or 0)) if is_count(step) else ""


def best_first(checkpoints: list[Checkpoint], metric: str) -> list[Checkpoint]:
    """The checkpoints that have a metric, best first; of equals the later first."""
    return ranked(checkpoints, metric, lambda checkpoint: checkpoint.metrics)


def newest_of_each_step(checkpoints: list[Checkpoint]) -> list[Checkpoint]:
    """By step, oldest first; where two attempts have saved the same step, the newer one's."""
    ordered = sorted(checkpoints, key=lambda checkpoint: (checkpoint.step, _age(checkpoint)))
    return list({checkpoint.step: checkpoint for checkpoint in ordered}.values())


def _by_step(names: set[str]) -> list[str]:
    return sorted((n for n in names if step_of(n) is not None), key=lambda n: (step_of(n), n))


def _age(checkpoint: Checkpoint) -> tuple[int, str]:
    return attempt_key(checkpoint.commit.attempt)


def is_run(url: str) -> bool:
    """Whether a folder is a run's: it has config.yaml, and is no bundle."""
    names = storage.list_names(url)
    return CONFIG in names and COMMIT not in names


def _read_commit(url: str, step: int) -> Commit:
    commit = read_commit(url)
    if commit.step != step:
        raise DamagedError(f"{storage.join(url, COMMIT)}: damaged (it is of step {commit.step})")
    return commit


def _sizes(checkpoint: Checkpoint) -> dict[str, int]:
    """Bytes of those of its files that are there."""
    urls = {name: storage.join(checkpoint.url, name) for name in checkpoint.files}
    found = {}
    for name, url in urls.items():
        try:
            if storage.exists(url):
                found[name] = storage.size(url)
        except UserError:
            if storage.exists(url):
                raise
    return found


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
