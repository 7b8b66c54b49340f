"""A run's progress as the driver shows it: a bar on a terminal, plain lines in a pod's log."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from typing import Any

from pipeline.progress import LINE_EVERY_SECONDS
from pipeline.train.driver_channel import Event

log = logging.getLogger("era")
OnEvent = Callable[[Event], object]  # returning True asks the run to save and stop
Ask = Callable[[], bool]  # whether to save and stop; asked twice a second


def never() -> bool:
    """The default: nothing else asks the run to stop."""
    return False


class Display:
    """Shows events; open it around a run.

    Args:
        steps: the number of steps of the whole run.
        on_event: receives the events instead, where a sweep listens.
        ask: whether to stop, where a sweep asks.
    """

    def __init__(self, steps: int, on_event: OnEvent | None, ask: Ask = never) -> None:
        self.steps, self.on_event, self.ask = steps, on_event, ask
        self.bar: Any = None
        self.task: Any = None
        self.last = 0.0
        self.asked_to_stop = False

    def __enter__(self) -> Display:
        if self.on_event is None and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import Progress

            self.bar = Progress(console=Console(stderr=True), transient=True)
            self.task = self.bar.add_task("train", total=self.steps)
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def poll(self) -> bool:
        """Whether the run was asked to stop."""
        self.asked_to_stop = self.asked_to_stop or self.ask()
        return self.asked_to_stop

    def show(self, event: Event) -> None:
        """Show one event."""
        if self.on_event is not None:
            self.asked_to_stop |= self.on_event(event) is True
        elif event.line:
            log.log(logging.WARNING if event.warning else logging.INFO, "%s", event.line)
        else:
            self._progress(event)

    def _progress(self, event: Event) -> None:
        text = _text(event.metrics)
        if self.bar is not None:
            self.bar.update(self.task, completed=event.step, description=f"train {text}")
        validated = "val/psnr" in event.metrics
        if validated or (self.bar is None and time.monotonic() - self.last >= LINE_EVERY_SECONDS):
            self.last = time.monotonic()
            log.info("step %d of %d  %s", event.step, self.steps, text)


def _text(metrics: dict[str, float]) -> str:
    shown = {"train/loss": "loss", "val/psnr": "val psnr", "val/ssim": "val ssim"}
    return "  ".join(f"{s} {metrics[name]:.4f}" for name, s in shown.items() if name in metrics)
