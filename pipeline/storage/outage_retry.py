"""Patience: what a storage refuses now it may do in a minute."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TypeVar

from pipeline.errors import StorageDown

T = TypeVar("T")
log = logging.getLogger("era")
WAITS = (5.0, 10.0, 20.0, 40.0, 60.0)  # seconds between tries: a bucket may fail for a minute


def retry_outages(work: Callable[[], T], what: str, giving_up: threading.Event | None = None) -> T:
    """Do storage work, again and again for over two minutes: an outage of a minute loses nothing.

    Args:
        work: may be done again.
        what: it is, for the log.
        giving_up: once set, nothing is waited for any more.

    Raises:
        StorageDown: if the outage lasts. UserError: at once, for what no patience cures.
    """
    end = giving_up or threading.Event()  # a plain loop: this is asked for with every crop
    for number, pause in enumerate(WAITS, start=1):
        try:
            return work()
        except StorageDown as error:
            log.warning("%s: try %d failed (%s); again", what, number, error)
            if end.wait(pause):
                raise
    return work()
