"""The driver of `era train`: freezes the run, runs attempts, retries failed ones."""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from pipeline import storage
from pipeline.checkpoint import Checkpoint, CheckpointStore
from pipeline.cluster import connected, require_resources
from pipeline.config import TrainConfig
from pipeline.config.check import worker_range
from pipeline.errors import DamagedError, Stopped, StorageDown, UserError, printable
from pipeline.runfolder import KeptLog, write_result
from pipeline.runfolder.names import CHAOS, step_of
from pipeline.train.attempt import run_attempt
from pipeline.train.failures import (
    fault_of_environment,
    out_of_memory,
    root_cause,
    was_preempted,
)
from pipeline.train.show import Ask, OnEvent, never

log = logging.getLogger("era")
LONGEST_REVISION = 200  # characters
TRIES_WITHOUT_PROGRESS = 3


def train(
    config: TrainConfig,
    on_event: OnEvent | None = None,
    *,
    gated: bool = False,
    ask: Ask = never,
    may_begin: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """Train the run that `config` names; the same call again resumes it.

    Args:
        config: a checked configuration.
        on_event: receives every event of rank 0 (a sweep's hook); returning True asks the run to
            save and stop. Without it progress is shown.
        gated: wait after each validation until `on_event` has returned, so that a run that is
            stopped for its result makes no further step.
        ask: asked twice a second whether to save and stop.
        may_begin: called directly before each attempt; raises where none may begin any more.

    Returns:
        `run` (URL), `step`, `best` (URL of the best checkpoint), `metrics` (of the last step).

    Raises:
        UserError: for input that cannot work, and after three failures without progress.
        Stopped: after SIGTERM, Ctrl-C or a request of `on_event` or `ask`, with a checkpoint saved.
    """
    config, run_url = prepared(config)
    store = CheckpointStore(run_url)
    store.folder.freeze(config)
    latest = store.folder.latest()
    if latest is not None and latest.step >= config.train.steps and _is_sound(latest):
        log.info("run %s is finished: step %d of %d", run_url, latest.step, config.train.steps)
        return _summary(config, run_url, store)
    # Logical processors as the run needs them: more workers than cores is slow, not wrong.
    processors = worker_range(config)[1] * config.scaling.cpus_per_worker
    with KeptLog() as kept, connected(processors):
        require_resources(config)
        _retry(config, run_url, store, kept, on_event, gated, ask, may_begin)
    return _summary(config, run_url, store)


def prepared(config: TrainConfig) -> tuple[TrainConfig, str]:
    """The configuration with the code's revision, and the URL of its run.

    Raises:
        UserError: if there is no data to train on.
    """
    require_data(config)
    revision = config.run.revision or git_revision()
    config = replace(config, run=replace(config.run, revision=revision))
    return config, storage.absolute(storage.join(config.run.root, config.run.name))


def git_revision(folder: Path = Path(__file__).parent) -> str:
    """The revision of the code in `folder`: ERA_REVISION, else what Git says; may be empty."""
    if given := os.environ.get("ERA_REVISION", ""):
        return printable(" ".join(given.split()))[:LONGEST_REVISION]
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def require_data(config: TrainConfig, searched: Collection[str] = ()) -> None:
    """Refuse data that are not there; `searched` are the keys that a sweep chooses.

    Raises:
        UserError: also for a URL with credentials.
    """
    if not config.data.train and "data.train" not in searched:
        raise UserError("data.train is empty: give the URL of a preprocessed split")
    urls = {"data.train": config.data.train, "data.val": config.data.val}
    for url in (url for key, url in urls.items() if url and key not in searched):
        if not storage.exists(storage.join(url, "manifest.json")):
            raise UserError(f"{url}: no manifest.json there; make it with `era preprocess`")


def _retry(
    config: TrainConfig,
    run_url: str,
    store: CheckpointStore,
    kept: KeptLog,
    on_event: OnEvent | None,
    gated: bool = False,
    ask: Ask = never,
    may_begin: Callable[[], None] | None = None,
) -> None:
    """Run attempts until one succeeds; failures are retried while new checkpoints appear."""
    folder = store.folder
    failures, kills = 0, len(folder.lines(CHAOS))
    while True:
        known = storage.retry_outages(folder.committed, "look for checkpoints")
        before = max(filter(None, map(step_of, known)), default=None)
        if may_begin is not None:
            storage.retry_outages(may_begin, "owner of the sweep")
        owner = storage.retry_outages(
            partial(folder.begin_attempt, config, before), "beginning of an attempt"
        )
        kept.keep(run_url, owner, partial(folder.require_command, owner))
        try:
            return run_attempt(config, run_url, owner, on_event, gated, ask)
        except Exception as error:
            if isinstance(error, (Stopped, UserError)) and not isinstance(error, StorageDown):
                raise  # another attempt would end the same way
            storage.retry_outages(partial(folder.require_command, owner), "owner of the run")
            struck = len(storage.retry_outages(partial(folder.lines, CHAOS), CHAOS))
            chaos, kills = struck > kills, struck
            # Not the greatest step, which may be that of a damaged one.
            after = storage.retry_outages(folder.committed, "look for checkpoints")
            progress = not set(after) <= set(known)
            failures = 0 if progress or chaos or was_preempted(error) else failures + 1
            if failures >= TRIES_WITHOUT_PROGRESS:
                raise _given_up(run_url, failures, error) from None
            reason = root_cause(error)
            log.warning("a worker failed (%s); going on from the last checkpoint", reason)


def _given_up(run_url: str, failures: int, error: Exception) -> Exception:
    if isinstance(error, StorageDown):
        return error
    reason = f"{failures} failures without a new checkpoint; last: {root_cause(error)}"
    known = out_of_memory(error) or fault_of_environment(error)
    kind = UserError if known else RuntimeError
    return kind(f"run {run_url}: {reason}")


def _is_sound(checkpoint: Checkpoint) -> bool:
    """Verify the last checkpoint of a finished run, which is not loaded otherwise."""
    try:
        checkpoint.verify()
        return True
    except DamagedError as error:
        log.warning("checkpoint passed over: %s", error)
        return False


def _summary(config: TrainConfig, run_url: str, store: CheckpointStore) -> dict[str, Any]:
    latest, best = store.folder.latest(), store.folder.best()
    if latest is None:
        raise RuntimeError(f"run {run_url}: ended without a checkpoint")
    store.restore_run_files(latest)
    summary = {
        "run": run_url,
        "step": latest.step,
        "best": (best or latest).url,
        "metrics": latest.metrics,
    }
    if latest.step >= config.train.steps:  # else a sweep has it end earlier, for now
        write_result(run_url, summary)
    return summary
