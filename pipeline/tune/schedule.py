"""What Tune asks a sweep: which trial comes next, and whether one is to stop early.

Tune keeps nothing between two starts. Its schedulers get the results of earlier starts again, and
what they decide is recorded in the trial's folder before the trial learns of it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import (
    AsyncHyperBandScheduler,
    FIFOScheduler,
    MedianStoppingRule,
    TrialScheduler,
)
from ray.tune.search import Searcher

from pipeline.tune.config import SweepConfig
from pipeline.tune.ledger import Ledger, noted
from pipeline.tune.trial import INDEX, RUN, UNTIL, trial_name

log = logging.getLogger("era")


class Unfinished(Searcher):
    """Hands the unfinished trials to Tune, lowest number first.

    Args:
        ledger: of the sweep's trials. at_once: says how many may run at the same time now.
        ending: whether no trial is to start any more.
    """

    def __init__(
        self, ledger: Ledger, at_once: Callable[[], int], ending: Callable[[], bool]
    ) -> None:
        super().__init__()
        self.ledger, self.waiting = ledger, ledger.unfinished()
        self.at_once, self.ending = at_once, ending
        self.running: set[str] = set()

    def set_search_properties(self, *_: Any, **__: Any) -> bool:
        """Accept Tune's metric and mode: the ledger has them from the sweep."""
        return True

    @noted
    def suggest(self, trial_id: str) -> Any:
        """Return the next trial's number, its point recorded in its folder; None: not yet."""
        if not self.waiting or self.ending():
            return Searcher.FINISHED
        if len(self.running) >= self.at_once():
            return None
        self.running.add(trial_id)
        index = self.waiting.pop(0)
        self.ledger.start(index)
        return {INDEX: index, RUN: self.ledger.run_name(index), UNTIL: self.ledger.until}

    def on_trial_complete(self, trial_id: str, *_: Any, **__: Any) -> None:
        """Make room for the next; results arrive through the scheduler."""
        self.running.discard(trial_id)

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the trials' folders have it all."""


@dataclass(frozen=True)
class _Contender:
    """A trial as Tune's rules see it: the same after every restart."""

    trial_id: str


class Decisions(FIFOScheduler):
    """Lets one of Tune's rules decide about each validation result once.

    Tune would kill a stopped trial at once, in the middle of a step. Here the decision is
    recorded, and the trial reads it, saves a checkpoint and ends.

    Args:
        ledger: of the sweep's trials. rule: decides; None = no trial is stopped early.
    """

    def __init__(self, ledger: Ledger, rule: Any | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ledger, self.rule = ledger, rule
        self.contenders: dict[int, _Contender] = {}

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        """Take the metric, then repeat the results of earlier starts to the rule."""
        if self.rule is not None:
            self.rule.set_search_properties(metric, mode, **spec)
            for index, step, value in self.ledger.judged_results():
                self._feed(index, step, value)
        return True

    @noted
    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Grant the retries that earlier failures have left."""
        super().on_trial_add(tune_controller, trial)
        failures = self.ledger.start(trial.config[INDEX]).failures
        trial.max_failures = max(0, self.ledger.sweep.retries - failures)

    @noted
    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Decide about a result that has not been decided about, and record the decision."""
        ledger, index, step = self.ledger, trial.config[INDEX], result["step"]
        value = result.get(ledger.sweep.metric)
        record = ledger.start(index)
        if value is None or self.rule is None or step <= record.judged or record.stopped_at:
            return str(TrialScheduler.CONTINUE)
        ledger.add_result(index, step, value)
        decision = self.rule.on_trial_result(
            tune_controller, self._contender(index), {"step": step, ledger.sweep.metric: value}
        )
        stop = decision == TrialScheduler.STOP and step < ledger.end_of(index)
        ledger.judge(index, step, stop)
        if stop:
            log.info("%s is stopped early, at step %d", trial_name(index), step)
        return str(TrialScheduler.CONTINUE)

    def _feed(self, index: int, step: int, value: float) -> None:
        result = {"step": step, self.ledger.sweep.metric: value}
        if isinstance(self.rule, MedianStoppingRule):  # only notes the result
            self.rule.on_trial_complete(None, self._contender(index), result)  # type: ignore[arg-type]
        elif self.rule is not None:
            self.rule.on_trial_result(None, self._contender(index), result)

    def _contender(self, index: int) -> Any:
        if index not in self.contenders:
            self.contenders[index] = _Contender(trial_name(index))
            if self.rule is not None:
                self.rule.on_trial_add(None, self.contenders[index])
        return self.contenders[index]


def rule_of(sweep: SweepConfig) -> Any | None:
    """Tune's scheduler that a sweep names; None for none."""
    training = sweep.training().train
    if sweep.scheduler == "asha":
        return AsyncHyperBandScheduler(
            time_attr="step",
            max_t=training.steps,
            grace_period=training.validate_every,
            reduction_factor=sweep.reduction,
        )
    if sweep.scheduler == "median":
        never: Any = float("inf")  # trials are never paused
        return MedianStoppingRule(
            time_attr="step",
            grace_period=training.validate_every,
            min_samples_required=2,
            min_time_slice=never,
        )
    return None
