"""What search and early stopping know again after a sweep was killed.

Tune's own notes are some seconds old when it is killed, and say nothing about the scheduler. The
trials' folders are whole at any moment, so what is missing is read from them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from optuna.trial import TrialState
from ray.tune.experiment import Trial
from ray.tune.schedulers import AsyncHyperBandScheduler, MedianStoppingRule
from ray.tune.search.optuna import OptunaSearch

from pipeline import storage
from pipeline.runs.search import CONFIG, Run
from pipeline.tune.space import Point, value_at
from pipeline.tune.trial import INDEX, trial_name

Result = dict[str, Any]


class TpeSearch(OptunaSearch):
    """Optuna's TPE that numbers its trials; one whose folder is there keeps the folder's point.

    Args:
        url: the sweep's. keys: of its space.
    """

    def __init__(self, url: str, keys: Sequence[str], seed: int) -> None:
        super().__init__(seed=seed)
        self.url, self.keys, self.count = url, list(keys), 0

    def suggest(self, trial_id: str) -> Point | None:
        """The next point, with its number."""
        run = Run(storage.join(self.url, trial_name({INDEX: self.count})))
        if storage.exists(storage.join(run.url, CONFIG)):
            self._enqueue({key: value_at(run.config, key) for key in self.keys})
        point = super().suggest(trial_id)
        if point is None:
            return None
        self.count += 1
        return {INDEX: self.count - 1, **point}

    def _enqueue(self, point: Point) -> None:
        """Let the next suggestion be this point, and the sampler pass over what it would have said.

        It gave the point to a trial before, as one that was not noted in time: else its next
        suggestion would be the same again.
        """
        study: Any = self._ot_study
        study.tell(study.ask(fixed_distributions=self._space), state=TrialState.FAIL)
        study.enqueue_trial(point)


class Asha(AsyncHyperBandScheduler):
    """Asynchronous successive halving whose rungs are filled again from the trials' metrics.

    Args:
        url: the sweep's. metric: what is compared. options: of Tune's scheduler.
    """

    def __init__(self, url: str, metric: str, **options: Any) -> None:
        super().__init__(time_attr="step", **options)
        self.url, self.watched = url, metric

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Take up a trial; decisions about its past stand as they were made."""
        super().on_trial_add(tune_controller, trial)
        for result in past_results(self.url, self.watched, trial):
            super().on_trial_result(tune_controller, trial, result)


class MedianStopping(MedianStoppingRule):
    """The median rule, its results filled again likewise; a trial is stopped, but never paused."""

    def __init__(self, url: str, metric: str, **options: Any) -> None:
        never: Any = float("inf")
        super().__init__(time_attr="step", min_time_slice=never, **options)
        self.url, self.watched = url, metric

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Take up a trial."""
        super().on_trial_add(tune_controller, trial)
        for result in past_results(self.url, self.watched, trial):
            self.on_trial_complete(tune_controller, trial, result)


def past_results(url: str, metric: str, trial: Trial) -> Iterator[Result]:
    """What a trial has reported before, as its run knows it; nothing of a new trial."""
    run = Run(storage.join(url, trial_name(trial.config)))
    for row in run.metrics:
        if row.get(metric) is not None:
            yield {"step": row["step"], metric: row[metric]}
