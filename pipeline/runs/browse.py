"""Results of `era runs list`, `show`, `best` and `compare`: plain values that JSON can hold."""

from __future__ import annotations

import logging
from typing import Any

from pipeline import storage
from pipeline.errors import DamagedError, UserError
from pipeline.runfolder import BEST_BY, Checkpoint, ranked
from pipeline.runfolder.names import COMMIT
from pipeline.runs.search import Run, find_runs

log = logging.getLogger("era")


def list_runs(url: str, metric: str = BEST_BY) -> dict[str, Any]:
    """All runs below a URL, the best by a metric first, those without it last."""
    runs = find_runs(url)
    order = ranked(runs, metric, lambda run: _scores(run, metric))
    rest = [run for run in runs if run not in order]
    return {"metric": metric, "runs": [_row(run, metric) for run in [*order, *rest]]}


def show_run(url: str, metric: str = BEST_BY) -> dict[str, Any]:
    """One run in full: row, lineage, attempts and checkpoints."""
    runs = find_runs(url)
    if len(runs) > 1:
        names = ", ".join(run.name for run in runs[:5])
        raise UserError(f"{url}: holds {len(runs)} runs ({names}, ...); name one, or use list")
    run = runs[0]
    return {
        **_row(run, metric),
        "lineage": lineage(run),
        "config": run.config,
        "attempts": [{k: v for k, v in line.items() if k != "free"} for line in run.attempts],
        "checkpoints": [_checkpoint_row(checkpoint) for checkpoint in run.checkpoints],
    }


def best_run(url: str, metric: str = BEST_BY) -> dict[str, Any]:
    """The best checkpoint of all runs below a URL.

    Raises:
        UserError: if no checkpoint has the metric.
    """
    return best_of(find_runs(url), metric, url)


def best_of(runs: list[Run], metric: str, url: str) -> dict[str, Any]:
    """The same of runs that were found below a URL."""
    run, checkpoint = best_checkpoint(runs, metric, url)
    row = _checkpoint_row(checkpoint)
    return {"metric": metric, "value": checkpoint.metrics[metric], "run": run.url, **row}


def best_checkpoint(runs: list[Run], metric: str, url: str) -> tuple[Run, Checkpoint]:
    """The run and its checkpoint with the best value of a metric."""
    for run in ranked(runs, metric, lambda run: _checkpoint_scores(run, metric)):
        checkpoint = run.best(metric)
        if checkpoint is not None:
            _warn_of_other_validation(runs, metric, url)
            return run, checkpoint
    known = sorted({name for run in runs for c in run.checkpoints for name in c.metrics})
    hint = f"known: {', '.join(known)}" if known else "none was validated"
    raise UserError(f"{url}: no checkpoint there has the metric {metric} ({hint})")


def _warn_of_other_validation(runs: list[Run], metric: str, url: str) -> None:
    scored = [run for run in runs if run.best(metric) is not None]
    sets = sorted({str(run.section("data").get("val") or "none") for run in scored})
    if len(sets) > 1:
        shown = ", ".join(sets[:5])
        log.warning("%s: %s of runs with different data.val is compared: %s", url, metric, shown)


def compare_runs(urls: list[str], metric: str = BEST_BY) -> dict[str, Any]:
    """The configuration keys in which runs differ, and their rows."""
    runs = list({run.url: run for url in urls for run in find_runs(url)}.values())
    if len(runs) < 2:
        raise UserError(f"{urls[0]}: one run alone; give a root or several URLs to compare")
    flat = [_flat(run.config, "") for run in runs]
    keys = sorted({key for values in flat for key in values if key not in ("run.name", "run.root")})
    differ = [k for k in keys if len({repr(values.get(k)) for values in flat}) > 1]
    return {
        "metric": metric,
        "runs": [_row(run, metric) for run in runs],
        "differences": {key: [values.get(key) for values in flat] for key in differ},
    }


def lineage(run: Run) -> dict[str, Any]:
    """A run's origin: data, hashes, versions."""
    meta = _meta(run.checkpoints[-1]) if run.checkpoints else {}
    data = run.section("data")
    left_out = ("format", "step", "model")
    return {
        "train": data.get("train", ""),
        "val": data.get("val", ""),
        **{k: v for k, v in meta.items() if k not in left_out},
    }


def _meta(checkpoint: Checkpoint) -> dict[str, Any]:
    try:
        return checkpoint.meta
    except DamagedError as error:
        log.warning("%s; it is left out", error)
        return {}


def _scores(run: Run, metric: str) -> dict[str, float]:
    value = run.value(metric)
    return {} if value is None else {metric: value}


def _checkpoint_scores(run: Run, metric: str) -> dict[str, float]:
    best = run.best(metric)
    return {} if best is None else best.metrics


def _row(run: Run, metric: str) -> dict[str, Any]:
    best = run.best(metric)
    return {
        "name": run.name,
        "url": run.url,
        "step": run.step,
        "steps": run.steps,
        "finished": bool(run.steps) and run.step >= run.steps,
        "value": run.value(metric),
        "best": best.url if best else None,
        "started": run.attempts[0].get("started") if run.attempts else None,
        "attempts": len(run.attempts),
        "checkpoints": len(run.checkpoints),
        "bytes": sum(checkpoint.size for checkpoint in run.checkpoints),
        "data": str(run.section("data").get("train", "")),
        "model": str(run.section("model").get("size", "")),
    }


def _checkpoint_row(checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "checkpoint": checkpoint.url,
        "step": checkpoint.step,
        "saved": storage.modified(storage.join(checkpoint.url, COMMIT)).isoformat(" ", "seconds"),
        "metrics": checkpoint.metrics,
        "bytes": checkpoint.size,
    }


def _flat(values: dict[str, Any], prefix: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            found.update(_flat(value, f"{prefix}{key}."))
        else:
            found[f"{prefix}{key}"] = value
    return found
