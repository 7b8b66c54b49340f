"""SIGTERM and Ctrl-C during a sweep: the trials save and end; the same command resumes them."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from ray.tune import Stopper

from pipeline.errors import Stopped

log = logging.getLogger("era")
SAVE_SECONDS = 60.0  # for the trials, within the grace period of a pod


class Interrupts(Stopper):
    """Once a signal has arrived, asks the trials to save and end; after a while, ends them.

    Attributes:
        channel: an actor of `pipeline.train.driver_channel` that the trials ask; set once Ray runs.
    """

    received, since = 0, 0.0
    channel: Any = None

    @property
    def name(self) -> str:
        """The name of the signal."""
        return signal.Signals(self.received).name

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """End no trial by its results."""
        return False

    def stop_all(self) -> bool:
        """Whether to end the sweep whatever its trials do; Tune asks all the time."""
        if not self.received:
            return False
        if not self.since:
            self.since = time.monotonic()
            self.channel.collect.remote(True)
        return time.monotonic() - self.since > SAVE_SECONDS


@contextmanager
def handled(interrupts: Interrupts) -> Iterator[None]:
    """While open, SIGTERM and Ctrl-C end the sweep in order; the second one ends it at once."""

    def handle(number: int, frame: FrameType | None) -> None:
        if interrupts.received:
            raise Stopped(interrupts.name)
        interrupts.received = number
        log.info("%s: the trials save a checkpoint and end", interrupts.name)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {n: signal.signal(n, handle) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
