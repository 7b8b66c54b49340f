"""What a sweep says while it runs: a line for every trial's start, validation and end."""

from __future__ import annotations

import logging
from typing import Any

from ray.tune import Callback

from pipeline.tune.trial import trial_name

log = logging.getLogger("era")


class Lines(Callback):
    """Lines in the program's own log.

    Args:
        metric: shown beside the step.
    """

    def __init__(self, metric: str) -> None:
        self.metric = metric

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A driver was placed."""
        log.info("%s starts, or goes on", trial_name(trial.config))

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """A validation was reported."""
        if self.metric in result:
            name, value = trial_name(trial.config), result[self.metric]
            log.info("%s step %d  %s %.4f", name, result["step"], self.metric, value)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial has finished, or was stopped early."""
        done = sum(other.is_finished() for other in trials)
        log.info("%s ends; %d of the trials so far are done", trial_name(trial.config), done)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial failed, its retries included."""
        log.warning("%s failed", trial_name(trial.config))
