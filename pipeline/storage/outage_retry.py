"""Retries of storage operations through outages of up to two minutes."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TypeVar

from pipeline.errors import StorageDown

T = TypeVar("T")
log = logging.getLogger("era")
WAITS = (5.0, 10.0, 20.0, 40.0, 60.0)  # seconds between tries


def retry_outages(work: Callable[[], T], what: str, giving_up: threading.Event | None = None) -> T:
    """Retry a storage operation through outages of up to two minutes.

    Args:
        work: the operation; must be safe to repeat.
        what: its name, for the log.
        giving_up: when set, the operation is not retried any more.

    Raises:
        StorageDown: if the outage lasts longer. UserError: at once, for any other fault.
    """
    end = giving_up or threading.Event()  # called for every crop, hence a plain loop
    for number, pause in enumerate(WAITS, start=1):
        try:
            return work()
        except StorageDown as error:
            log.warning("%s: try %d failed (%s); again", what, number, error)
            if end.wait(pause):
                raise
    return work()
