"""Waits that log what they wait for, and end."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

log = logging.getLogger("era")
SAY_SECONDS = 30.0
T = TypeVar("T")


class Wait:
    """One wait inside a loop that does other things too.

    Args:
        what: what is waited for, as the end of the sentence "waiting for ...".
        seconds: how long at most.
        cure: what the user can do when it took too long.
    """

    def __init__(self, what: str, seconds: float, cure: str = "") -> None:
        self.what, self.seconds, self.cure = what, seconds, cure
        self.restart()

    def restart(self) -> None:
        """Count from now: there was progress."""
        self.since = time.monotonic()
        self.next = self.since + SAY_SECONDS

    @property
    def waited(self) -> float:
        """Seconds since the wait began."""
        return time.monotonic() - self.since

    def check(self) -> None:
        """Log at intervals what is being waited for.

        Raises:
            TimeoutError: after the wait's limit, in one line.
        """
        if self.waited > self.seconds:
            cure = f"; {self.cure}" if self.cure else ""
            raise TimeoutError(f"waited {self.seconds:.0f} s for {self.what}{cure}")
        if time.monotonic() >= self.next:
            self.next = time.monotonic() + SAY_SECONDS
            log.info("waiting for %s (%.0f s so far)", self.what, self.waited)


def wait_for(done: Callable[[], T], what: str, seconds: float, pause: float = 0.5) -> T:
    """Call `done` until it returns a true value; return that value.

    Raises:
        TimeoutError: after `seconds`.
    """
    wait = Wait(what, seconds)
    while not (found := done()):
        wait.check()
        time.sleep(pause)
    return found
