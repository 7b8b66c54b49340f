"""`sweep.html`: the results of all trials on one page."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

from pipeline.errors import UserError
from pipeline.report import SweepPage, write_sweep_page
from pipeline.runfolder import higher_is_better
from pipeline.runs.search import Run
from pipeline.tune.config import SweepConfig
from pipeline.tune.population import Round
from pipeline.tune.search import importance
from pipeline.tune.space import Point, in_space, overrides_of, value_at
from pipeline.tune.trial import trial_name


def write_page(
    url: str,
    sweep: SweepConfig,
    runs: list[Run],
    best: dict[str, Any],
    failed: dict[str, tuple[Point, str]],
    rounds: list[Round],
) -> None:
    """Write the page from the trials' runs.

    Args:
        runs: of the trials. best: from `pipeline.runs.best_run`.
        failed: trials that failed for good: their points and errors.
        rounds: of population-based training.
    """
    known = {run.name: run for run in runs}
    rows = [
        _row(name, known.get(name), sweep, failed.get(name)) for name in sorted({*known, *failed})
    ]
    results = [] if rounds else _results(rows, sweep)  # a trial's values have changed meanwhile
    curves = {run.name: _curve(run, sweep.metric) for run in runs}
    winner = next(run for run in runs if run.url == best["run"])
    write_sweep_page(
        url,
        SweepPage(
            title=f"Sweep {winner.url.split('/')[-2]}",
            metric=sweep.metric,
            rows=rows,
            curves={name: points for name, points in sorted(curves.items()) if points},
            best=best["checkpoint"],
            value=best["value"],
            config={
                k: v for k, v in winner.config.items() if k in ("model", "data", "train", "loss")
            },
            settings=list(sweep.space),
            importance=importance(sweep.space, results, higher_is_better(sweep.metric)),
            exchanges=_exchanges(rounds),
        ),
    )


def _exchanges(rounds: list[Round]) -> list[dict[str, Any]]:
    """A row for each exchange."""
    return [
        {
            "step": held.step,
            "trial": trial_name(exchange.trial),
            "weights of": trial_name(exchange.source),
            **{
                key: f"{_short(exchange.before.get(key))} -> {_short(value)}"
                for key, value in exchange.point.items()
            },
        }
        for held in rounds
        for exchange in held.exchanges
    ]


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _row(
    name: str, run: Run | None, sweep: SweepConfig, failed: tuple[Point, str] | None
) -> dict[str, Any]:
    """A trial's row; one that failed at its start has no run."""
    chosen = failed[0] if failed else {}
    point = {key: chosen.get(key) for key in sweep.space}  # in the order of the page's columns
    if run is not None:
        point = {key: value_at(run.config, key) for key in sweep.space}
    finished = run is not None and run.step >= run.steps
    return {
        "trial": name,
        sweep.metric: run.value(sweep.metric) if run else None,
        **point,
        **_cost(sweep, point),
        "step": run.step if run else 0,
        "state": "failed" if failed else "finished" if finished else _ended(sweep),
        "attempts": len(run.attempts) if run else 0,
        "error": failed[1] if failed else "",
    }


def _ended(sweep: SweepConfig) -> str:
    return "replaced" if sweep.scheduler == "pbt" else "stopped early"


def _cost(sweep: SweepConfig, chosen: Point) -> dict[str, Any]:
    """Where networks differ: a trial's parameters, and 10^9 multiply-adds of 256x256 pixels."""
    if not any(key.startswith("model.") for key in sweep.space):
        return {}
    if not in_space(sweep.space, chosen):  # the run's configuration is damaged
        return {"parameters": None, "GMAC": None}
    try:
        model = sweep.training(overrides_of(chosen)).model
    except UserError:  # settings that exclude each other: why the trial failed
        return {"parameters": None, "GMAC": None}
    return _cost_of(model.size, json.dumps(model.overrides))


@lru_cache(maxsize=4096)
def _cost_of(size: str, overrides: str) -> dict[str, Any]:
    import era

    cost = era.cost(era.named_config(size, **json.loads(overrides)), 256, 256)
    return {"parameters": cost.parameters, "GMAC": cost.macs / 1e9}


def _results(rows: list[dict[str, Any]], sweep: SweepConfig) -> list[tuple[Point, float]]:
    points = [({key: row.get(key) for key in sweep.space}, row[sweep.metric]) for row in rows]
    return [(p, value) for p, value in points if value is not None and in_space(sweep.space, p)]


def _curve(run: Run, metric: str) -> list[tuple[float, float]]:
    rows = ((row.get("step"), row.get(metric)) for row in run.metrics)
    numbers = (int, float)
    return [(s, v) for s, v in rows if isinstance(s, numbers) and isinstance(v, numbers)]
