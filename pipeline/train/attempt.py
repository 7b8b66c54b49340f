"""One attempt of a run: Ray Train in a thread; events, signals and waits around it."""

from __future__ import annotations

import logging
import signal
import tempfile
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

from pipeline.cluster import Growth, Wait, on_loopback, release_orphans
from pipeline.config import TrainConfig
from pipeline.errors import Stopped, UserError
from pipeline.train.driver_channel import POLL_SECONDS, Report, start_channel
from pipeline.train.failures import root_cause
from pipeline.train.payload import Payload
from pipeline.train.show import Ask, Display, OnEvent, never
from pipeline.train.trainer import Outcome, run_trainer

log = logging.getLogger("era")
LISTEN_SECONDS = 5.0  # for newly started workers to notice a signal
QUIET_SECONDS = 60.0  # without a word, after which lost nodes mean that the workers are lost
START_SECONDS, STEP_SECONDS, STOP_SECONDS = 6 * 3600.0, 2 * 3600.0, 1800.0  # at most


def run_attempt(
    config: TrainConfig,
    run_url: str,
    owner: str,
    on_event: OnEvent | None = None,
    gated: bool = False,
    ask: Ask = never,
) -> None:
    """Run workers until the last step; Ray Train runs in a thread, and signals are handled here.

    Raises:
        Stopped: after a signal or a request of `on_event` or `ask`, with a checkpoint saved.
        UserError: whatever a worker raised of that kind, or a wait that took too long.
        Exception: what ended the attempt otherwise.
    """
    channel = start_channel()
    payload = Payload(config, run_url, channel, owner, str(Path.cwd()), not on_loopback(), gated)
    outcome = Outcome()
    with tempfile.TemporaryDirectory(prefix="era-ray-", ignore_cleanup_errors=True) as scratch:
        thread = threading.Thread(
            target=run_trainer, args=(config, payload, scratch, outcome), daemon=True
        )
        with Signals() as signals, Display(config.train.steps, on_event, ask) as display:
            thread.start()
            try:
                _Watch(config, channel, signals, display).until_ended(thread)
            except TimeoutError as error:
                raise UserError(f"run {run_url}: {error}; the same command resumes it") from None
    if signals.received:
        if outcome.error is not None:
            reason = root_cause(outcome.error)
            log.warning("failed while it stopped, after its last checkpoint: %s", reason)
        raise Stopped(signals.name)
    if outcome.error is not None:
        release_orphans()
        raise outcome.error
    if display.asked_to_stop:
        raise Stopped("asked to")


class _Watch:
    """The driver's loop while workers run."""

    def __init__(
        self, config: TrainConfig, channel: Any, signals: Signals, display: Display
    ) -> None:
        self.channel, self.signals, self.display = channel, signals, display
        self.growth = Growth(config)
        self.asking: Any = None
        self.contacts, self.gone, self.heard = 0, 0, False
        self.start = Wait("the workers' first step", START_SECONDS, "see `ray status`")
        self.step = Wait("the workers' next step", STEP_SECONDS, "see `ray status`")
        self.stop: Wait | None = None

    def until_ended(self, thread: threading.Thread) -> None:
        """Show events and check waits until the trainer's thread has ended."""
        while thread.is_alive():
            thread.join(POLL_SECONDS)
            self._pass_on(POLL_SECONDS)
            self._check_stop()
            if self._at_work():
                self.step.check()
            else:
                self._check_start()
        self._pass_on(10 * POLL_SECONDS)

    def _pass_on(self, seconds: float) -> None:
        """Exchange with the channel until it has no more events; it may be slow to answer."""
        while self._events(seconds):
            continue

    def _events(self, seconds: float) -> bool:
        """Show what one exchange brings; return whether it brought anything."""
        import ray

        if self.asking is None:
            stop = bool(self.signals.received) or self.display.poll()
            self.asking = self.channel.collect.remote(stop)
        ready, _ = ray.wait([self.asking], timeout=seconds)
        if not ready:
            return False
        report: Report = ray.get(self.asking)
        self.asking = None
        if report.contacts != self.contacts:
            self.contacts, self.heard = report.contacts, True
            self.step.restart()
        if report.gone > self.gone:  # less after a restart of the channel
            self._await_group()
        self.gone = report.gone
        for event in report.events:
            self.display.show(event)
        return bool(report.events)

    def _at_work(self) -> bool:
        """Whether workers are, as far as is known; not where they were lost with their nodes."""
        quiet = self.step.waited > QUIET_SECONDS and not self.signals.received  # it may be saving
        if self.heard and quiet and self.growth.lacks_room():
            self._await_group()
        return self.heard

    def _await_group(self) -> None:
        self.heard = False
        self.start.restart()

    def _check_start(self) -> None:
        self.signals.leave_if_nobody_listens()
        if self.growth.check():
            release_orphans()
        self.start.check()

    def _check_stop(self) -> None:
        if not self.signals.received:
            return
        if self.stop is None:
            log.info("%s: saving a checkpoint, then stopping", self.signals.name)
            self.stop = Wait("the workers to save and stop", STOP_SECONDS)
        try:
            self.stop.check()
        except TimeoutError:
            raise Stopped(self.signals.name) from None


class Signals:
    """While open, SIGTERM and Ctrl-C ask the run to save and stop; the second one ends at once."""

    def __init__(self) -> None:
        self.received, self.since = 0, 0.0
        self.before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self.before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    @property
    def name(self) -> str:
        """The name of the signal that came first."""
        return signal.Signals(self.received).name

    def leave_if_nobody_listens(self) -> None:
        """Stop immediately while workers are still awaited: there is nothing to save."""
        if self.received and time.monotonic() - self.since > LISTEN_SECONDS:
            raise Stopped(self.name)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            raise Stopped(self.name)
        self.received, self.since = number, time.monotonic()
