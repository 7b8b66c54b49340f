"""What a sweep reports while it runs: progress lines in the log, failures in the ledger."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

from ray.tune import Callback

from pipeline.cluster import release_orphans
from pipeline.tune.ledger import Ledger, noted
from pipeline.tune.trial import FAILED, INDEX, LINE, trial_name

log = logging.getLogger("era")
CLEAN_SECONDS = 10.0
SAY_SECONDS = 30.0


class Reporter(Callback):
    """Writes progress lines to the program's log, and failures to the ledger."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.before: dict[int, int] = {}
        self.shown: dict[int, int] = {}  # the last step of each trial: a trial repeats its end
        self.heard: set[int] = set()  # the trials whose workers have started
        self.cleaned = self.said = time.monotonic()

    @noted
    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A driver was placed."""
        index = trial.config[INDEX]
        self.before.setdefault(index, self.ledger.start(index).failures)
        log.info("%s starts or resumes", trial_name(index))

    @noted
    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """A validation, or a line of the trial's run."""
        index, metric = trial.config[INDEX], self.ledger.sweep.metric
        self.heard.add(index)
        if LINE in result:
            log.info("%s: %s", trial_name(index), result[LINE])
        if metric in result and result["step"] > self.shown.get(index, 0):
            step, value = result["step"], result[metric]
            self.shown[index] = step
            self.ledger.add_result(index, step, value)
            log.info("%s step %d  %s %.4f", trial_name(index), step, metric, value)
            self._forgive(trial)

    @noted
    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Every few seconds free what killed trials still hold; say what is waited for.

        Raises:
            UserError: where another command has taken the sweep over.
        """
        now = time.monotonic()
        if now - self.cleaned >= CLEAN_SECONDS:
            self.cleaned = now
            self.ledger.owner.look()
            release_orphans()
        if now - self.said >= SAY_SECONDS:
            self.said = now
            self._say_waits(trials)

    def _say_waits(self, trials: list[Any]) -> None:
        for status, what in (("PENDING", "a place for the driver"), ("RUNNING", "the workers")):
            indices = [trial.config[INDEX] for trial in trials if trial.status == status]
            names = [trial_name(index) for index in indices if index not in self.heard]
            if names:
                log.info("waiting for %s of %s", what, ", ".join(names))

    @noted
    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial has finished, or was stopped early."""
        index = trial.config[INDEX]
        self.ledger.refresh(index)
        left = len(self.ledger.unfinished())
        log.info("%s ends; %d of %d trials are left", trial_name(index), left, len(self.ledger))

    @noted
    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial failed and is tried again."""
        self._record(trial, failed=False)

    @noted
    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial failed, its retries included."""
        self._record(trial, failed=True)

    def _forgive(self, trial: Any) -> None:
        """A trial that comes further has its retries again, as a run's workers have."""
        index = trial.config[INDEX]
        if self.before.get(index, 0) + trial.num_failures > 0:
            self.before[index] = -trial.num_failures
            trial.max_failures = trial.num_failures + self.ledger.sweep.retries
            self.ledger.fail(index, 0, False, "")

    def _record(self, trial: Any, failed: bool) -> None:
        index = trial.config[INDEX]
        self.heard.discard(index)
        failures = self.before.get(index, 0) + trial.num_failures
        reason = _last_reason(trial.error_file)
        self.ledger.fail(index, failures, failed, reason)
        log.warning("%s failed%s: %s", trial_name(index), "" if failed else ", tried again", reason)


def _last_reason(error_file: str | None) -> str:
    """The last failure that Tune has noted in its own text file, in one line."""
    text = Path(error_file).read_text(encoding="utf-8") if error_file else ""
    lines = [line.strip() for line in text.split("Failure # ")[-1].splitlines()[1:] if line.strip()]
    reasons = [line.partition(FAILED)[2] for line in lines if FAILED in line]
    return (reasons or lines or ["unknown"])[-1 if reasons else 0]
