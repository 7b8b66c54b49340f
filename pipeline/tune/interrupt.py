"""SIGTERM and Ctrl-C during a sweep: the trials end, and the same command resumes them."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from ray.tune import Stopper

from pipeline.errors import Stopped

log = logging.getLogger("era")


class Interrupts(Stopper):
    """Tells Tune to end the sweep once a signal has arrived."""

    received = 0

    @property
    def name(self) -> str:
        """The name of the signal."""
        return signal.Signals(self.received).name

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """End no trial by its results."""
        return False

    def stop_all(self) -> bool:
        """Whether to end the sweep."""
        return self.received > 0


@contextmanager
def handled(interrupts: Interrupts) -> Iterator[None]:
    """While open, SIGTERM and Ctrl-C end the sweep in order; the second one ends it at once."""

    def handle(number: int, frame: FrameType | None) -> None:
        if interrupts.received:
            raise Stopped(interrupts.name)
        interrupts.received = number
        log.info("%s: ending the trials", interrupts.name)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {n: signal.signal(n, handle) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
