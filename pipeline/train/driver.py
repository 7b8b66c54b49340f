"""The driver of `era train`: freezes the run, starts Ray Train, retries, stops on signals."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import tempfile
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from pipeline import storage
from pipeline.checkpoint import Checkpoint, CheckpointStore
from pipeline.cluster import Growth, connected, require_resources
from pipeline.config import TrainConfig
from pipeline.config.check import worker_range
from pipeline.errors import DamagedError, Stopped, StorageDown, UserError
from pipeline.runfolder.names import CHAOS
from pipeline.train.driver_channel import POLL_SECONDS, start_channel
from pipeline.train.failures import find_user_error, root_cause, was_preempted
from pipeline.train.show import Display, OnEvent
from pipeline.train.worker import train_worker

log = logging.getLogger("era")
TRIES_WITHOUT_PROGRESS = 3
LISTEN_SECONDS = 5.0  # for workers that have just started to hear of a signal


def train(
    config: TrainConfig, on_event: OnEvent | None = None, *, gated: bool = False
) -> dict[str, Any]:
    """Train, or go on with, the run that `config` names; the same call again resumes it.

    Args:
        config: a checked configuration.
        on_event: receives every event of rank 0 (a sweep's hook); returning True asks the run to
            save and stop. Without it progress is shown.
        gated: wait after each validation until `on_event` has returned, so that a run that is
            stopped for its result makes no further step.

    Returns:
        `run` (URL), `step`, `best` (URL of the best checkpoint), `metrics` (of the last step).

    Raises:
        UserError: for input that cannot work, and after three failures without progress.
        Stopped: after SIGTERM, Ctrl-C or `on_event`'s request, with a checkpoint saved.
    """
    _require_data(config)
    revision = config.run.revision or git_revision()
    config = replace(config, run=replace(config.run, revision=revision))
    run_url = storage.absolute(storage.join(config.run.root, config.run.name))
    store = CheckpointStore(run_url)
    store.folder.freeze(config)
    latest = store.latest()
    if latest is not None and latest.step >= config.train.steps and _is_sound(latest):
        log.info("run %s is finished: step %d of %d", run_url, latest.step, config.train.steps)
        return _summary(run_url, store)
    # Logical processors as the run needs them: more workers than cores is slow, not wrong.
    with connected(worker_range(config)[1] * config.scaling.cpus_per_worker):
        require_resources(config)
        _retry(config, run_url, store, on_event, gated)
    return _summary(run_url, store)


def git_revision(folder: Path = Path(__file__).parent) -> str:
    """The revision of the code in `folder`: ERA_REVISION, else what git says; may be empty."""
    if given := os.environ.get("ERA_REVISION", ""):
        return given
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _require_data(config: TrainConfig) -> None:
    if not config.data.train:
        raise UserError("data.train is empty: give the URL of a preprocessed split")
    for url in filter(None, (config.data.train, config.data.val)):
        if not storage.exists(storage.join(url, "manifest.json")):
            raise UserError(f"{url}: no manifest.json there; make it with `era preprocess`")


def _retry(
    config: TrainConfig,
    run_url: str,
    store: CheckpointStore,
    on_event: OnEvent | None,
    gated: bool,
) -> None:
    """Fit until done: a failure is retried while new checkpoints appear."""
    folder = store.folder
    failures, kills = 0, len(folder.lines(CHAOS))
    while True:
        before = storage.retry_outages(store.latest_step, "look for checkpoints")
        owner = storage.retry_outages(
            partial(folder.begin_attempt, config, before), "beginning of an attempt"
        )
        try:
            return _fit(config, run_url, owner, on_event, gated)
        except Exception as error:
            if isinstance(error, (Stopped, UserError)) and not isinstance(error, StorageDown):
                raise  # trying again would end the same way
            struck = len(storage.retry_outages(partial(folder.lines, CHAOS), CHAOS))
            chaos, kills = struck > kills, struck
            after = storage.retry_outages(store.latest_step, "look for checkpoints")
            progress = (after or 0) > (before or 0)
            failures = 0 if progress or chaos or was_preempted(error) else failures + 1
            if failures >= TRIES_WITHOUT_PROGRESS:
                raise _given_up(run_url, failures, error) from None
            reason = root_cause(error)
            log.warning("a worker failed (%s); going on from the last checkpoint", reason)


def _given_up(run_url: str, failures: int, error: Exception) -> Exception:
    if isinstance(error, StorageDown):
        return error
    reason = root_cause(error)
    return RuntimeError(
        f"run {run_url}: {failures} failures without a new checkpoint; last: {reason}"
    )


def _fit(
    config: TrainConfig, run_url: str, owner: str, on_event: OnEvent | None, gated: bool
) -> None:
    """One attempt. Ray Train runs in a thread, so that signals are ours."""
    channel = start_channel()
    payload = {"config": config, "run_url": run_url, "channel": channel, "owner": owner}
    payload |= {"folder": str(Path.cwd()), "gated": gated}
    outcome: list[BaseException | None] = []
    asked = False
    with tempfile.TemporaryDirectory(prefix="era-ray-") as scratch:
        thread = threading.Thread(
            target=_run_trainer, args=(config, payload, scratch, outcome), daemon=True
        )
        growth = Growth(config)
        with _Signals(channel) as signals, Display(config.train.steps, on_event) as display:
            thread.start()
            while thread.is_alive():
                thread.join(POLL_SECONDS)
                _deliver(channel, display)
                if not display.heard:  # no worker is up yet
                    signals.leave_if_nobody_listens()
                    growth.check()
            asked = _deliver(channel, display)
    if signals.received:
        raise Stopped(signals.name)
    if outcome and outcome[0] is not None:
        raise outcome[0]
    if asked:
        raise Stopped("asked to")


def _run_trainer(
    config: TrainConfig, payload: dict[str, Any], scratch: str, outcome: list[Any]
) -> None:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    least, most = worker_range(config)
    workers: Any = least if least == most else (least, most)
    resources = {"CPU": config.scaling.cpus_per_worker, "GPU": int(config.scaling.gpu)}
    try:
        TorchTrainer(
            train_worker,
            train_loop_config=payload,
            torch_config=TorchConfig(backend="nccl" if config.scaling.gpu else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=workers,
                use_gpu=config.scaling.gpu,
                resources_per_worker=resources,
            ),
            # Ray writes only its own small notes here: checkpoints are ours (pipeline.checkpoint).
            run_config=RunConfig(
                name=config.run.name, storage_path=scratch, failure_config=FailureConfig()
            ),
        ).fit()
        outcome.append(None)
    except BaseException as error:  # handed to the main thread, which raises it
        outcome.append(find_user_error(error) or error)


def _deliver(channel: Any, display: Display) -> bool:
    """Show what came from rank 0, pass on a request to stop; return whether there was one."""
    import ray

    while events := ray.get(channel.collect.remote()):
        for event in events:
            display.show(event)
        if display.asked_to_stop:
            channel.stop.remote()  # before the next `collect`, which says that all is dealt with
    return display.asked_to_stop


def _is_sound(checkpoint: Checkpoint) -> bool:
    """Read a finished run's last checkpoint, which nobody loads."""
    try:
        checkpoint.verify()
        return True
    except DamagedError as error:
        log.warning("checkpoint passed over: %s", error)
        return False


def _summary(run_url: str, store: CheckpointStore) -> dict[str, Any]:
    latest, best = store.latest(), store.best()
    if latest is None:
        raise RuntimeError(f"run {run_url}: ended without a checkpoint")
    store.restore_run_files(latest)
    return {
        "run": run_url,
        "step": latest.step,
        "best": (best or latest).url,
        "metrics": latest.metrics,
    }


class _Signals:
    """While open, SIGTERM and Ctrl-C ask the run to save and stop; the second one ends at once."""

    def __init__(self, channel: Any) -> None:
        self.channel = channel
        self.received, self.since = 0, 0.0
        self.before: dict[int, Any] = {}

    def __enter__(self) -> _Signals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self.before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    @property
    def name(self) -> str:
        """The name of the signal that came first."""
        return signal.Signals(self.received).name

    def leave_if_nobody_listens(self) -> None:
        """Stop at once where workers are only waited for: there is nothing to save."""
        if self.received and time.monotonic() - self.since > LISTEN_SECONDS:
            raise Stopped(self.name)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            raise Stopped(self.name)
        self.received, self.since = number, time.monotonic()
        log.info("%s: saving a checkpoint, then stopping", self.name)
        self.channel.stop.remote()
