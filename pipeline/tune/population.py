"""Population-based training: at fixed steps the worst trials continue from the best ones' weights.

The decision about an exchange is a pure function of the results of all trials at its step and of
the sweep's seed. It is written to `exchanges/step-NNNNNNNN.json` in the sweep's folder before
anything follows from it. A trial that takes over another one's weights goes on in a run of its
own, `trial-NNN-step-NNNNNNNN`, with the values that it has from then on: a run's configuration
never changes, and its curve is that of its weights.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from pipeline import storage
from pipeline.border import Count, Number, Text, parse_json, validated
from pipeline.checkpoint import CheckpointStore
from pipeline.errors import UserError
from pipeline.runfolder import RunFolder, frozen_hash
from pipeline.runfolder.names import EXCHANGE
from pipeline.runs.search import Run
from pipeline.train.driver import prepared
from pipeline.tune.config import SweepConfig
from pipeline.tune.ledger import Ledger
from pipeline.tune.record import TrialRecord, write_record
from pipeline.tune.space import Point, Space, draw, in_space, keyed, spelling
from pipeline.tune.trial import results_of, trial_config, trial_count, trial_name

FOLDER = "exchanges"
MAX_BYTES = 16 << 20
PART = 4  # the best and the worst quarter take part
RESAMPLED = 0.25  # probability that a value is drawn again
FACTORS = (0.8, 1.2)  # by which other values are multiplied


@dataclass(frozen=True)
class Exchange:
    """A trial continues from another one's weights.

    Attributes:
        trial, source: numbers of the trials.
        seed: key of all random draws.
        before, point: the trial's values until now, and from now on.
    """

    trial: Count
    source: Count
    seed: Text
    before: dict[Text, Any]
    point: dict[Text, Any]


@dataclass(frozen=True)
class Round:
    """What is decided at a step.

    Attributes:
        step: optimiser steps done.
        scores: trial -> the metric at this step; None where it is not finite.
        exchanges: those that follow.
    """

    step: Count
    scores: dict[Text, Number | None]
    exchanges: list[Exchange]


class Population:
    """The trials of a sweep on their way from exchange to exchange.

    For other schedulers there is no exchange, and one way, to the last step.
    """

    def __init__(self, ledger: Ledger) -> None:
        self.ledger, every = ledger, exchange_every(ledger.sweep)
        self.ends = [*range(every, ledger.last_step, every)] if every else []
        self.ends.append(ledger.last_step)
        self._go_to_next()
        self.rounds: list[Round] = []  # those that have been held

    def advance(self) -> bool:
        """Exchange where all have arrived; return whether any trial has steps to do.

        Raises:
            UserError: if a decision cannot be read, or a checkpoint that it needs.
        """
        while not self.ledger.unfinished() and len(self.ends) > 1:
            self._exchange(self.ends.pop(0))
            self._go_to_next()
        return bool(self.ledger.unfinished())

    def _go_to_next(self) -> None:
        self.ledger.last_step = self.ends[0]
        self.ledger.until = self.ends[0] if len(self.ends) > 1 else 0

    def _exchange(self, step: int) -> None:
        members = [i for i in range(len(self.ledger)) if self.ledger.finished(i)]
        found = read_round(self.ledger.url, self.ledger.sweep, step)
        if found is None and members:
            found = self._record(self._decide(step, members))
        for exchange in found.exchanges if found else []:
            take_over(self.ledger, step, exchange)
        self.rounds += [found] if found else []

    def _record(self, decided: Round) -> Round:
        """Write a decision, unless another command has been first; return the one that holds."""
        url, ledger = _round_url(self.ledger.url, decided.step), self.ledger
        text = json.dumps(asdict(decided), indent=1) + "\n"
        ledger.owner.require()
        storage.retry_outages(partial(storage.create, url, text.encode()), url)
        return read_round(ledger.url, ledger.sweep, decided.step) or decided

    def _decide(self, step: int, members: list[int]) -> Round:
        ledger, sweep = self.ledger, self.ledger.sweep
        scores = {i: _score(ledger.trial_url(i), sweep.metric, step) for i in members}
        points = {i: ledger.start(i).point for i in members}
        exchanges = decide(sweep.space, sweep.seed, step, scores, points, ledger.maximise)
        return Round(step, {trial_name(i): score for i, score in scores.items()}, exchanges)


def _score(url: str, metric: str, step: int) -> float | None:
    """A trial's metric at a step; from the step's checkpoint where the curve cannot be read."""
    found = results_of(Run(url), metric).get(step)
    latest = RunFolder(url).latest()
    if found is None and latest is not None and latest.step == step:
        return latest.metrics.get(metric)
    return found


def exchange_every(sweep: SweepConfig) -> int:
    """Steps between exchanges; 0 where there are none."""
    if sweep.scheduler != "pbt":
        return 0
    return sweep.exchange_every or sweep.training().train.validate_every


def decide(
    space: Space,
    seed: int,
    step: int,
    scores: dict[int, float | None],
    points: dict[int, Point],
    maximise: bool,
) -> list[Exchange]:
    """Truncation selection: each of the worst quarter takes over one of the best quarter.

    Args:
        scores: by trial; None is worse than any number. points: by trial.
        maximise: whether a greater score is better.
    """
    worst = float("-inf") if maximise else float("inf")
    values = {i: worst if score is None else score for i, score in scores.items()}
    order = sorted(values, key=lambda i: (-values[i] if maximise else values[i], i))
    part = max(1, len(order) // PART)
    best, losers = order[:part], sorted(order[-part:])
    exchanges = []
    for trial in losers:
        key = f"{seed}/{step}/{trial}"
        source = best[int(keyed(f"pbt/{key}").integers(part))]
        if values[source] != values[trial]:
            point = {
                name: _explored(space[name], v, f"{key}/{name}")
                for name, v in points[source].items()
            }
            exchanges.append(Exchange(trial, source, key, points[trial], point))
    return exchanges


def _explored(domain: dict[str, list[Any]], value: Any, key: str) -> Any:
    """A value drawn again, or one near the old one, within the domain."""
    rng = keyed(f"pbt/{key}")
    if rng.random() < RESAMPLED:
        return draw(domain, f"pbt/{key}/anew")
    up = int(rng.integers(2))
    ((kind, values),) = domain.items()
    if kind == "choice":
        place = [spelling(v) for v in values].index(spelling(value)) + (1 if up else -1)
        return values[min(max(place, 0), len(values) - 1)]
    near = value * FACTORS[up]
    return min(max(round(near) if kind == "int" else near, values[0]), values[1])


def read_round(sweep_url: str, sweep: SweepConfig, step: int) -> Round | None:
    """The decision about a step; None where none has been made.

    Raises:
        UserError: if the file is damaged: what it said cannot be decided again.
    """
    url = _round_url(sweep_url, step)
    if not storage.exists(url):
        return None
    found = validated(Round, parse_json(storage.read_bytes(url), url, MAX_BYTES), url)
    for exchange in found.exchanges:
        known = max(exchange.trial, exchange.source) < trial_count(sweep)
        if found.step != step or not known or not in_space(sweep.space, exchange.point):
            raise UserError(f"{url}: not a decision of this sweep; restore the file")
    return found


def run_after(trial: int, step: int) -> str:
    """Name of the run in which a trial continues after an exchange."""
    return f"{trial_name(trial)}-step-{step:08d}"


def take_over(ledger: Ledger, step: int, exchange: Exchange) -> None:
    """Begin the run in which a trial continues, unless it has begun.

    Its first checkpoint is the other trial's of this step; that one waits until all runs of the
    round have begun, so that the checkpoint is there whenever this is repeated.
    """
    name = run_after(exchange.trial, step)
    if RunFolder(storage.join(ledger.url, name)).latest_step() is None:
        _begin_run(ledger, step, exchange, name)
    ledger.move(exchange.trial, name, exchange.point)


def _begin_run(ledger: Ledger, step: int, exchange: Exchange, name: str) -> None:
    ledger.owner.require()
    source = ledger.trial_url(exchange.source)
    loaded = CheckpointStore(source).load_latest()
    if loaded is None or loaded.checkpoint.step != step:
        raise UserError(
            f"{source}: no sound checkpoint of step {step}, from which {name} begins; delete the "
            "damaged one, and the trial makes it again"
        )
    config, url = prepared(trial_config(ledger.sweep, exchange.trial, exchange.point, name))
    write_record(url, TrialRecord(point=exchange.point), ledger.owner.attempt)
    folder = RunFolder(url)
    folder.freeze(config)
    origin = {"step": step, "checkpoint": loaded.checkpoint.url, **asdict(exchange)}
    storage.write_text(folder.file(EXCHANGE), json.dumps(origin, indent=1) + "\n")
    ledger.owner.require()  # loading took its time
    owner = folder.begin_attempt(config, step)
    store = CheckpointStore(url, partial(folder.require_owner, owner), owner)
    store.save(
        step=step,
        model=loaded.weights,
        training=loaded.training,
        meta={**loaded.checkpoint.meta, "frozen_sha256": frozen_hash(config)},
        files=loaded.run_files,
        metrics={},  # the other trial's achievement
        keep_best=config.checkpoint.keep_best,
    )
    store.wait()


def _round_url(sweep_url: str, step: int) -> str:
    return storage.join(sweep_url, FOLDER, f"step-{step:08d}.json")
