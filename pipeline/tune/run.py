"""The verb: plan, refuse what cannot fit, run or restore the sweep, and show what came out."""

from __future__ import annotations

import logging
import os
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from pipeline import storage
from pipeline.cluster import connected
from pipeline.config.check import worker_range
from pipeline.errors import Stopped, UserError
from pipeline.runs import best_run
from pipeline.runs.search import find_runs
from pipeline.train.failures import root_cause
from pipeline.train.freeze import frozen_hash
from pipeline.tune.config import SweepConfig, load_sweep
from pipeline.tune.page import write_page
from pipeline.tune.plan import Plan, make_plan
from pipeline.tune.space import for_tune
from pipeline.tune.trial import INDEX, point_of, points_of, run_trial, trial_name

log = logging.getLogger("era")
STATE = ".tune"  # Tune's own files
FILE = "sweep.yaml"
SNAPSHOT_SECONDS = "2"  # between Tune's notes of who runs and who is done; its own choice is 10


def tune(name: str, overrides: list[str]) -> dict[str, Any]:
    """Run a sweep, or go on with it; the same call again loses no trial and repeats none.

    Returns:
        `best` (URL of the best checkpoint), `trials`, `failed`, `sweep` (URL), `page`, and the
        best's `metrics`.

    Raises:
        UserError: for a configuration that cannot work, or a cluster that can never hold a trial.
        Stopped: after Ctrl-C.
    """
    sweep = load_sweep(name, overrides)
    training = sweep.training()
    url = storage.absolute(storage.join(training.run.root, training.run.name))
    storage.check_writable(url)
    _refuse_another(url, sweep)
    processors = worker_range(training)[0] * training.scaling.cpus_per_worker
    with connected(processors, {"trial": 1000}):
        plan, results = _run(sweep, url)
    ended = [r for r in results if r.error is not None or (r.metrics or {}).get("done")]
    if len(ended) < plan.trials:  # Tune takes Ctrl-C for itself, and returns what there is
        raise Stopped("SIGINT")
    failed = {
        trial_name(result.config): (point_of(sweep, result.config), _reason(result.error))
        for result in results
        if result.error is not None
    }
    for name, (_, reason) in sorted(failed.items()):
        log.warning("%s set aside: %s", name, reason)
    if len(failed) == len(results):
        raise UserError(f"sweep {url}: all {len(failed)} trials failed; the last: {reason}")
    best = best_run(url, sweep.metric)
    page = storage.join(url, "sweep.html")
    write_page(page, sweep, find_runs(url), best, failed)
    return {
        "best": best["checkpoint"],
        "trials": len(results),
        "failed": len(failed),
        "sweep": url,
        "page": page,
        "metrics": best["metrics"],
    }


def _refuse_another(url: str, sweep: SweepConfig) -> None:
    """Refuse a folder with another sweep, or with something else.

    What does not define the results (retries, workers, tracking, ...) may change on the way.
    """
    place = storage.join(url, FILE)
    if not storage.exists(place):
        names = storage.list_names(url)
        if names:
            raise UserError(f"sweep {url}: the folder holds {names[0]}; choose another run.name")
        return
    before = SweepConfig(**yaml.safe_load(storage.read_text(place)))
    free = ("concurrent", "retries", "config", "overrides")
    changed = [k for k, v in vars(sweep).items() if k not in free and getattr(before, k) != v]
    if frozen_hash(before.training()) != frozen_hash(sweep.training()):
        changed.append("training configuration")
    if changed:
        raise UserError(
            f"sweep {url}: it began with another {', '.join(changed)}; choose another run.name"
        )


def _run(sweep: SweepConfig, url: str) -> tuple[Plan, Any]:
    """Run what is left of the sweep on the cluster that this process has joined."""
    plan = make_plan(sweep)
    log.info("%s", plan)
    if not storage.exists(storage.join(url, FILE)):
        storage.write_text(storage.join(url, FILE), yaml.safe_dump(asdict(sweep), sort_keys=False))
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", SNAPSHOT_SECONDS)
    return plan, _tuner(sweep, url, plan).fit()


def _tuner(sweep: SweepConfig, url: str, plan: Plan) -> Any:
    """The sweep as Tune sees it: new, or as it was when it was killed."""
    from ray import tune

    from pipeline.tune.show import Lines

    _forward_no_credentials()
    trainable = tune.with_resources(
        partial(run_trial, sweep=sweep, folder=str(Path.cwd())), plan.driver
    )
    state, filesystem = storage.join(url, STATE), _filesystem(url)
    if _has_state(state):
        log.info("going on with the sweep %s", url)
        path = state if filesystem is None else state.removeprefix("s3://")
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
            max_concurrent_trials=plan.at_once,
            search_alg=_searcher(sweep, url) if points is None else None,
            scheduler=_scheduler(sweep, url),
            trial_dirname_creator=_dirname,
            trial_name_creator=_dirname,
        ),
        run_config=tune.RunConfig(
            name=STATE,
            storage_path=root,
            storage_filesystem=filesystem,
            failure_config=tune.FailureConfig(max_failures=sweep.retries),
            callbacks=[Lines(sweep.metric)],
            verbose=0,
        ),
    )


def _forward_no_credentials() -> None:
    """Keep AWS_* out of the trial actors' runtime environment.

    Tune copies these variables there, and Ray shows a runtime environment in command lines and
    logs. Nodes have credentials in their own environment. Tune has no option for this.
    """
    from ray.tune.execution import class_cache

    names = class_cache.ENV_VARS_TO_PROPAGATE
    names.difference_update([name for name in names if name.startswith("AWS_")])


def _has_state(url: str) -> bool:
    """Whether Tune has left whole notes; without, the trials' folders are enough to go on."""
    names = storage.list_names(url)
    notes = sorted(name for name in names if name.startswith("experiment_state-"))
    if "tuner.pkl" not in names or not notes:
        return False
    try:
        storage.read_json(storage.join(url, notes[-1]))
    except ValueError:  # cut in the middle of a copy
        return False
    return True


def _reason(error: Exception) -> str:
    """A trial's error in one line: Ray's carries the worker's traceback."""
    return root_cause(error)


def _dirname(trial: Any) -> str:
    return trial_name(trial.config)


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


def _searcher(sweep: SweepConfig, url: str) -> Any:
    from pipeline.tune.replay import TpeSearch

    return TpeSearch(url, list(sweep.space), sweep.seed)


def _scheduler(sweep: SweepConfig, url: str) -> Any:
    from pipeline.tune.replay import Asha, MedianStopping

    training = sweep.training().train
    if sweep.scheduler == "asha":
        return Asha(
            url,
            sweep.metric,
            max_t=training.steps,
            grace_period=training.validate_every,
            reduction_factor=sweep.reduction,
        )
    if sweep.scheduler == "median":
        return MedianStopping(
            url, sweep.metric, grace_period=training.validate_every, min_samples_required=2
        )
    return None
