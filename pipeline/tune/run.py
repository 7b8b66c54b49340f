"""The verb: plan, refuse what cannot fit, run or restore the sweep, and show what came out."""

from __future__ import annotations

import logging
import os
from dataclasses import asdict
from functools import partial
from typing import Any

import yaml

from pipeline import storage
from pipeline.config.check import worker_range
from pipeline.errors import UserError
from pipeline.runs import best_run
from pipeline.runs.search import find_runs
from pipeline.spread import has_cluster, join_cluster
from pipeline.train.cluster import require_resources, start_local
from pipeline.tune.config import SweepConfig, load_sweep
from pipeline.tune.page import write_page
from pipeline.tune.space import for_tune
from pipeline.tune.trial import INDEX, points_of, run_trial, trial_name

log = logging.getLogger("era")
STATE = ".tune"  # Tune's own files
FILE = "sweep.yaml"
LITTLE_MEMORY = 1 << 20  # bytes: what a driver asks for where no node offers `trial`


def tune(name: str, overrides: list[str]) -> dict[str, Any]:
    """Run a sweep, or go on with it; the same call again loses no trial and repeats none.

    Returns:
        `best` (URL of the best checkpoint), `trials`, `failed`, `sweep` (URL), `page`, and the
        best's `metrics`.

    Raises:
        UserError: for a configuration that cannot work, or a cluster that can never hold a trial.
    """
    sweep = load_sweep(name, overrides)
    training = sweep.training()
    url = storage.absolute(storage.join(training.run.root, training.run.name))
    storage.check_writable(url)
    _freeze(url, sweep)
    _connect(sweep)
    require_resources(training)
    at_once = _plan(sweep)
    results = _tuner(sweep, url, at_once).fit()
    failed = [str(error).splitlines()[-1] for error in results.errors]
    for text in failed:
        log.warning("trial set aside: %s", text)
    best = best_run(url, sweep.metric)
    page = storage.join(url, "sweep.html")
    write_page(page, sweep, find_runs(url), best)
    return {
        "best": best["checkpoint"],
        "trials": len(results),
        "failed": len(failed),
        "sweep": url,
        "page": page,
        "metrics": best["metrics"],
    }


def _freeze(url: str, sweep: SweepConfig) -> None:
    """Write `sweep.yaml` at the first start; refuse another sweep under the same name."""
    place, values = storage.join(url, FILE), asdict(sweep)
    free = ("concurrent", "retries")
    if storage.exists(place):
        before = yaml.safe_load(storage.read_text(place))
        changed = [k for k in values if k not in free and before.get(k) != values[k]]
        if changed:
            raise UserError(
                f"sweep {url}: it began with another {', '.join(changed)}; choose another run.name"
            )
        return
    names = storage.list_names(url)
    if names:
        raise UserError(f"sweep {url}: the folder holds {names[0]}; choose another run.name")
    storage.write_text(place, yaml.safe_dump(values, sort_keys=False))


def _connect(sweep: SweepConfig) -> None:
    if has_cluster():
        join_cluster()
        return
    training = sweep.training()
    need = worker_range(training)[0] * training.scaling.cpus_per_worker
    start_local(max(need, os.cpu_count() or 1), {"trial": 1000})


def _plan(sweep: SweepConfig) -> int:
    """Say how the sweep will use the cluster; return how many trials run at once."""
    import ray

    training = sweep.training()
    least = worker_range(training)[0]
    has = ray.cluster_resources()
    needs = {"CPU": least * training.scaling.cpus_per_worker}
    if training.scaling.gpu:
        needs["GPU"] = least
    fit = max(1, min(int(has.get(k, 0) // n) for k, n in needs.items()))  # else it must grow
    points = points_of(sweep)
    trials = sweep.trials if points is None else len(points)
    at_once = min(trials, fit, sweep.concurrent or trials)
    where = "nodes that offer `trial`" if has.get("trial") else "any node"
    log.info(
        "%d trials, %d at once; each has %d workers and takes %s; drivers go to %s",
        trials,
        at_once,
        least,
        ", ".join(f"{n} {k}" for k, n in needs.items()),
        where,
    )
    return at_once


def _tuner(sweep: SweepConfig, url: str, at_once: int) -> Any:
    """The sweep as Tune sees it: new, or as it was when it was killed."""
    import ray
    from ray import tune

    driver: dict[str, float] = {"CPU": 0, "trial": 1}
    if not ray.cluster_resources().get("trial"):
        driver = {"CPU": 0, "memory": LITTLE_MEMORY}
    trainable = tune.with_resources(partial(run_trial, sweep=sweep), driver)
    state, filesystem = storage.join(url, STATE), _filesystem(url)
    path = state if filesystem is None else state.removeprefix("s3://")
    if tune.Tuner.can_restore(path, storage_filesystem=filesystem):
        log.info("going on with the sweep %s", url)
        return tune.Tuner.restore(
            path, trainable=trainable, storage_filesystem=filesystem, resume_unfinished=True
        )
    points = points_of(sweep)
    if points is None:
        space, samples = for_tune(sweep.space), sweep.trials
    else:
        space, samples = {INDEX: tune.grid_search(list(range(len(points))))}, 1
    root = url if filesystem is None else url.removeprefix("s3://")
    return tune.Tuner(
        trainable,
        param_space=space,
        tune_config=tune.TuneConfig(
            metric=sweep.metric,
            mode=_mode(sweep),
            num_samples=samples,
            max_concurrent_trials=at_once,
            search_alg=_searcher(sweep) if points is None else None,
            scheduler=_scheduler(sweep),
            trial_dirname_creator=_dirname,
            trial_name_creator=_dirname,
        ),
        run_config=tune.RunConfig(
            name=STATE,
            storage_path=root,
            storage_filesystem=filesystem,
            failure_config=tune.FailureConfig(max_failures=sweep.retries),
            verbose=0,
        ),
    )


def _dirname(trial: Any) -> str:
    return trial_name(trial.config, trial.trial_id)


def _filesystem(url: str) -> Any:
    """Tune's storage on S3: through s3fs, as all other files of ours."""
    if storage.is_local(url):
        return None
    import s3fs
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    return PyFileSystem(FSSpecHandler(s3fs.S3FileSystem()))


def _mode(sweep: SweepConfig) -> str:
    from pipeline.checkpoint import higher_is_better

    return "max" if higher_is_better(sweep.metric) else "min"


def _searcher(sweep: SweepConfig) -> Any:
    from ray.tune.search.optuna import OptunaSearch

    return OptunaSearch(seed=sweep.seed)


def _scheduler(sweep: SweepConfig) -> Any:
    from ray.tune.schedulers import AsyncHyperBandScheduler, MedianStoppingRule

    training = sweep.training().train
    if sweep.scheduler == "asha":
        return AsyncHyperBandScheduler(
            time_attr="step",
            max_t=training.steps,
            grace_period=training.validate_every,
            reduction_factor=sweep.reduction,
        )
    if sweep.scheduler == "median":
        return MedianStoppingRule(
            time_attr="step", grace_period=training.validate_every, min_samples_required=2
        )
    return None
