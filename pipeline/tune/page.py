"""`sweep.html`: all trials at a glance, without W&B."""

from __future__ import annotations

from typing import Any

from pipeline.report import SweepPage, write_sweep_page
from pipeline.runs.search import Run
from pipeline.tune.config import SweepConfig


def write_page(url: str, sweep: SweepConfig, runs: list[Run], best: dict[str, Any]) -> None:
    """Write the page from what the runs left.

    Args:
        runs: the trials'. best: as `pipeline.runs.best_run` names it.
    """
    rows = [_row(run, sweep) for run in sorted(runs, key=lambda run: run.name)]
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
        ),
    )


def _row(run: Run, sweep: SweepConfig) -> dict[str, Any]:
    chosen = {key: _at(run.config, key) for key in sweep.space}
    state = "finished" if run.step >= run.steps else "stopped"
    return {
        "trial": run.name,
        sweep.metric: run.value(sweep.metric),
        **chosen,
        "step": run.step,
        "state": state,
        "attempts": len(run.attempts),
    }


def _at(config: dict[str, Any], key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _curve(run: Run, metric: str) -> list[tuple[float, float]]:
    return [(row["step"], row[metric]) for row in run.metrics if row.get(metric) is not None]
