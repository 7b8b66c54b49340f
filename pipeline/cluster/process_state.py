"""Telling Ray things that it reads from the environment or from signal handlers only."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


@contextmanager
def environment(**variables: str | None) -> Iterator[None]:
    """Set these environment variables (None: unset them) and restore all of them at the end."""
    before = {name: os.environ.get(name) for name in variables}
    _set(variables)
    try:
        yield
    finally:
        _set(before)


def _set(variables: dict[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@contextmanager
def own_signal_handlers() -> Iterator[None]:
    """Hold SIGTERM and Ctrl-C back while Ray starts, and keep the caller's handlers.

    Ray installs a handler of its own for SIGTERM, which ends the process with exit code 15; a
    signal in the middle of its start ends it in C++ with exit code 134. Signals that arrive are
    delivered to the caller's handlers at the end.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        arrived.append(number)

    numbers = signal.SIGTERM, signal.SIGINT
    before: dict[int, Any] = {number: signal.signal(number, note) for number in numbers}
    from ray._private import utils  # `ray.init` has no option for it

    install = utils.set_sigterm_handler
    utils.set_sigterm_handler = lambda handler: None
    try:
        yield
    finally:
        utils.set_sigterm_handler = install
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in arrived[:1]:
            signal.raise_signal(number)
