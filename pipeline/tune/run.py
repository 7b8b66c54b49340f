"""The verb: check, plan, run the unfinished trials, and show the result."""

from __future__ import annotations

import logging
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import storage
from pipeline.cluster import connected, place_coordinator
from pipeline.cluster.process_state import environment
from pipeline.config.check import worker_range
from pipeline.errors import Stopped, UserError
from pipeline.runfolder import KeptLog, write_result
from pipeline.runs.browse import best_of
from pipeline.runs.search import find_runs
from pipeline.train.driver import require_data
from pipeline.train.driver_channel import start_channel
from pipeline.tune.begin import FILE, begin
from pipeline.tune.config import SweepConfig, load_sweep
from pipeline.tune.ledger import Ledger
from pipeline.tune.owner import Owner
from pipeline.tune.page import write_page
from pipeline.tune.plan import Planner
from pipeline.tune.population import Population
from pipeline.tune.trial import run_trial, trial_count, trial_name

if TYPE_CHECKING:
    from pipeline.tune.interrupt import Interrupts

log = logging.getLogger("era")
TUNE_SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the trials' runs write their own metrics
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # trials report lines of text too
    "RAY_AIR_NEW_OUTPUT": "0",  # the old output can be silent
}


def tune(name: str, overrides: list[str], resume_failed: bool = False) -> dict[str, Any]:
    """Run a sweep, or resume it: the same call again loses no trial and repeats none.

    Args:
        name: of the sweep's configuration, or its path.
        overrides: of the training configuration, for all trials.
        resume_failed: start trials again that failed for good.

    Returns:
        `best` (URL of the best checkpoint), `trials`, `failed`, `sweep` (URL), `page`, and the
        best's `metrics`.

    Raises:
        UserError: for a configuration that cannot work, a cluster that can never hold a trial, and
            where the sweep is started again while this command runs.
        Stopped: after SIGTERM or Ctrl-C.
    """
    sweep = load_sweep(name, overrides)
    training = sweep.training()
    url = storage.absolute(storage.join(training.run.root, training.run.name))
    storage.check_writable(url)
    _check_data(sweep)
    begin(url, sweep, resumed=_has_state(url))
    with KeptLog() as kept:
        owner = Owner(url, trial_count(sweep))
        kept.keep(url, owner.attempt, owner.require)
        ledger = Ledger(url, sweep, owner, resume_failed)
        population = Population(ledger)
        if population.advance():
            _run(sweep, ledger, population)
    return _summary(sweep, ledger, population)


def _check_data(sweep: SweepConfig) -> None:
    """Refuse data that are not there, and URLs with credentials, which `sweep.yaml` would keep."""
    for key, kinds in sweep.space.items():
        for choice in kinds.get("choice", []) if key.startswith("data.") else []:
            if isinstance(choice, str) and choice:
                storage.check_url(choice)
    searched = {key for key in sweep.space if key.startswith("data.")}
    require_data(sweep.training(), searched)


def _has_state(url: str) -> bool:
    """Whether a sweep has begun in this folder."""
    return storage.exists(storage.join(url, FILE))


def _run(sweep: SweepConfig, ledger: Ledger, population: Population) -> None:
    from pipeline.tune.interrupt import Interrupts, handled

    interrupts, training = Interrupts(), sweep.training()
    processors = worker_range(training)[0] * training.scaling.cpus_per_worker
    with (
        handled(interrupts),
        connected(processors, {"trial": 1000}),
        tempfile.TemporaryDirectory(prefix="era-tune-") as scratch,
        environment(**TUNE_SETTINGS),
    ):
        interrupts.channel = start_channel()
        place_coordinator()  # trials, on nodes that come and go, would else create it there
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # failures: see Reporter
        while not interrupts.received:
            planner = Planner(sweep, len(ledger.unfinished()))
            log.info("%s", planner.plan())
            if done := len(ledger) - planner.trials:
                log.info("resuming the sweep %s: %d trials are done", ledger.url, done)
            _fit(_tuner(sweep, ledger, planner, scratch, interrupts), ledger)
            if not interrupts.received:
                _require_ends(ledger)
                if not population.advance():
                    return
        raise Stopped(interrupts.name)


def _fit(tuner: Any, ledger: Ledger) -> None:
    """Run Tune; what a handler of ours raised, Tune turns into a traceback within an error."""
    from ray.tune import TuneError

    try:
        tuner.fit()
    except TuneError:
        if ledger.error is not None:
            raise ledger.error from None
        raise


def _require_ends(ledger: Ledger) -> None:
    for index in ledger.unfinished():
        ledger.refresh(index)
    if missing := [trial_name(index) for index in ledger.unfinished()]:
        raise RuntimeError(f"sweep {ledger.url}: {', '.join(missing)} did not finish")


def _summary(sweep: SweepConfig, ledger: Ledger, population: Population) -> dict[str, Any]:
    failed = ledger.failed()
    for name, (_, reason) in failed.items():
        log.warning("%s set aside: %s", name, reason)
    if len(failed) == len(ledger):
        raise UserError(
            f"sweep {ledger.url}: all {len(failed)} trials failed; the last: {reason}. "
            "Once the cause is removed, --resume-failed starts them again"
        )
    log.info("the results of %d trials are put together", len(ledger))
    runs = find_runs(ledger.url)
    best = best_of(runs, sweep.metric, ledger.url)
    page = storage.join(ledger.url, "sweep.html")
    summary = {
        "best": best["checkpoint"],
        "trials": len(ledger),
        "failed": len(failed),
        "sweep": ledger.url,
        "page": page,
        "metrics": best["metrics"],
    }
    ledger.owner.require()
    write_result(ledger.url, summary)
    write_page(page, sweep, runs, best, failed, population.rounds)
    return summary


def _tuner(
    sweep: SweepConfig, ledger: Ledger, planner: Planner, scratch: str, interrupts: Interrupts
) -> Any:
    """A new Tuner at every start; what Tune itself writes stays in a folder that is deleted.

    Args:
        scratch: that folder, on this machine.
    """
    from ray import tune

    from pipeline.tune.reporter import Reporter
    from pipeline.tune.schedule import Decisions, Unfinished, rule_of

    _forward_no_credentials()
    work = partial(
        run_trial,
        sweep=sweep,
        url=ledger.url,
        owner=ledger.owner.attempt,
        folder=str(Path.cwd()),
        channel=interrupts.channel,
    )
    return tune.Tuner(
        tune.with_resources(work, planner.plan().driver),
        tune_config=tune.TuneConfig(
            metric=sweep.metric,
            mode="max" if ledger.maximise else "min",
            num_samples=planner.trials,
            search_alg=Unfinished(ledger, planner.at_once, lambda: interrupts.received > 0),
            scheduler=Decisions(ledger, rule_of(sweep)),
            trial_dirname_creator=_dirname,
            trial_name_creator=_dirname,
        ),
        run_config=tune.RunConfig(
            name=f"step-{ledger.last_step}",
            storage_path=scratch,
            failure_config=tune.FailureConfig(max_failures=sweep.retries),
            stop=interrupts,
            callbacks=[Reporter(ledger)],
            verbose=0,
        ),
    )


def _dirname(trial: Any) -> str:
    from pipeline.tune.trial import INDEX

    return trial_name(trial.config[INDEX])


def _forward_no_credentials() -> None:
    """Keep AWS_* out of the trial actors' runtime environment.

    Tune copies these variables there, and Ray shows a runtime environment in command lines and
    logs. Nodes have credentials in their own environment. Tune has no option for this.
    """
    from ray.tune.execution import class_cache

    names = class_cache.ENV_VARS_TO_PROPAGATE
    names.difference_update([name for name in names if name.startswith("AWS_")])
