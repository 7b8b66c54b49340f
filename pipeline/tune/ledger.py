"""All trials of a sweep as their folders describe them; every start rebuilds this from there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import wraps
from typing import Any, TypeVar

from pipeline import storage
from pipeline.errors import Stopped, UserError, masked
from pipeline.runfolder import RunFolder, higher_is_better
from pipeline.runfolder.names import CONFIG
from pipeline.runs.search import Run
from pipeline.tune.config import SweepConfig
from pipeline.tune.owner import Owner
from pipeline.tune.record import TrialRecord, read_record, write_record
from pipeline.tune.search import suggest_point
from pipeline.tune.space import Point, in_space, value_at
from pipeline.tune.trial import points_of, results_of, trial_count, trial_name

Handler = TypeVar("Handler", bound=Callable[..., Any])


def noted(handler: Handler) -> Handler:
    """Keep what a handler raises: Tune makes a traceback of it, in an error of its own."""

    @wraps(handler)
    def called(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            done = handler(self, *args, **kwargs)
            self.ledger.error = None  # Tune went on after an earlier one
            return done
        except (UserError, Stopped) as error:
            self.ledger.error = error
            raise

    return called  # type: ignore[return-value]


class Ledger:
    """The trials' records and validation results.

    Args:
        url: the sweep's folder.
        sweep: its configuration.
        owner: of the sweep; asked before anything is written.
        retry_failed: whether trials without retries left start with new ones.
    """

    def __init__(
        self, url: str, sweep: SweepConfig, owner: Owner, retry_failed: bool = False
    ) -> None:
        self.url, self.sweep, self.owner, self.retry_failed = url, sweep, owner, retry_failed
        self.error: UserError | Stopped | None = None  # what ended Tune
        self.names: dict[int, str] = {}  # of the runs of trials that have taken over another's
        self.until = 0  # the step at which trials end for now; 0: at their last
        self.maximise = higher_is_better(sweep.metric)
        training = sweep.training()
        self.stop_at = training.debug.stop_at
        self.last_step = min(self.stop_at or training.train.steps, training.train.steps)
        self.points = points_of(sweep)
        self.records: dict[int, TrialRecord] = {}
        self.started: set[int] = set()  # those whose record this command has written
        self.results: dict[int, dict[int, float]] = {}
        self.steps: dict[int, int] = {}
        for index in range(trial_count(sweep)):
            self._load(index)

    def __len__(self) -> int:
        return trial_count(self.sweep)

    def run_name(self, index: int) -> str:
        """The name of a trial's run."""
        return self.names.get(index, trial_name(index))

    def trial_url(self, index: int) -> str:
        """A trial's folder, which is its run's."""
        return storage.join(self.url, self.run_name(index))

    def move(self, index: int, name: str, point: Point) -> None:
        """Go on with a trial in another run, at another point."""
        self.names[index] = name
        self.started.discard(index)
        self.records[index] = TrialRecord(point=point)  # unless that run's record says more
        self.results[index], self.steps[index] = {}, 0
        self._load(index)

    def unfinished(self) -> list[int]:
        """The trials that are neither finished, nor stopped early, nor failed for good."""
        return [i for i in range(len(self)) if not (self.finished(i) or self._closed(i))]

    def finished(self, index: int) -> bool:
        """Whether a trial's run has a checkpoint of its last step."""
        return self.steps.get(index, 0) >= self.end_of(index)

    def end_of(self, index: int) -> int:
        """A trial's last step, which may be among what is searched."""
        record = self.records.get(index)
        steps = record.point.get("train.steps") if record and not self.until else None
        return self.last_step if steps is None else min(self.stop_at or int(steps), int(steps))

    def stopped(self, index: int) -> bool:
        """Whether a trial was stopped early."""
        record = self.records.get(index)
        return record is not None and record.stopped_at > 0

    def failed(self) -> dict[str, tuple[Point, str]]:
        """The trials that failed for good: name of the run -> point, error."""
        return {
            self.run_name(index): (record.point, record.error)
            for index, record in sorted(self.records.items())
            if record.failed and not self.finished(index)
        }

    def start(self, index: int) -> TrialRecord:
        """Return a trial's record, which is this command's from now on; choose a missing point."""
        if index not in self.records:
            self.records[index] = TrialRecord(point=self._new_point(index))
        if index not in self.started:
            self._save(index)
        return self.records[index]

    def add_result(self, index: int, step: int, value: float) -> None:
        """Remember a validation result, for points that are chosen later."""
        self.results.setdefault(index, {})[step] = value

    def judged_results(self) -> Iterator[tuple[int, int, float]]:
        """Results that were decided about before this start: (trial, step, value), by step."""
        rows = [
            (step, index, value)
            for index, values in self.results.items()
            for step, value in values.items()
            if index in self.records and step <= self.records[index].judged
        ]
        return ((index, step, value) for step, index, value in sorted(rows))

    def judge(self, index: int, step: int, stop: bool) -> None:
        """Record the decision about a validation result."""
        record = self.start(index)
        record.judged, record.stopped_at = step, step if stop else 0
        self._save(index)

    def fail(self, index: int, failures: int, failed: bool, error: str) -> None:
        """Record a failure."""
        record = self.start(index)
        record.failures, record.failed = failures, failed
        record.error = masked(error)[:500]
        self._save(index)

    def refresh(self, index: int) -> None:
        """Look up how far a trial's run has come."""
        self.steps[index] = RunFolder(self.trial_url(index)).latest_step() or 0

    def _load(self, index: int) -> None:
        url = self.trial_url(index)
        if not storage.is_dir(url):
            return
        self.refresh(index)
        run, record = Run(url), read_record(url, before=self.owner.before)
        point = self._known_point(index, run, record)
        if point is not None:
            known = record or TrialRecord(point=point)
            self.records[index] = replace(known, point=point)
            if self.retry_failed and known.failed:
                self.fail(index, 0, False, "")
        for step, value in results_of(run, self.sweep.metric).items():
            self.add_result(index, step, value)

    def _known_point(self, index: int, run: Run, record: TrialRecord | None) -> Point | None:
        """The point of a trial that has started; one outside of the space counts as damaged."""
        if self.points is not None and index not in self.names:
            return self.points[index]
        if record is not None and in_space(self.sweep.space, record.point):
            return record.point
        if not storage.exists(storage.join(run.url, CONFIG)):
            return None
        point = {key: value_at(run.config, key) for key in self.sweep.space}
        return point if in_space(self.sweep.space, point) else None

    def _new_point(self, index: int) -> Point:
        if self.points is not None:
            return self.points[index]
        tried = [
            (record.point, None if record.failed else self._last_value(other))
            for other, record in sorted(self.records.items())
        ]
        sweep = self.sweep
        return suggest_point(sweep.space, sweep.seed, index, tried, maximise=self.maximise)

    def _last_value(self, index: int) -> float | None:
        values = self.results.get(index)
        return values[max(values)] if values else None

    def _closed(self, index: int) -> bool:
        record = self.records.get(index)
        return record is not None and (record.failed or record.stopped_at > 0)

    def _save(self, index: int) -> None:
        self.owner.require()
        self.started.add(index)
        write_record(self.trial_url(index), self.records[index], self.owner.attempt)
