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


def patiently(work: Callable[[], T], what: str, giving_up: threading.Event | None = None) -> T:
    """Do storage work, again and again for over two minutes: an outage of a minute loses nothing.

    Args:
        work: may be done again.
        what: it is, for the log.
        giving_up: once set, nothing is waited for any more.

    Raises:
        StorageDown: if the outage lasts. UserError: at once, for what no patience cures.
    """
    import tenacity

    def announce(state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        log.warning("%s: try %d failed (%s); again", what, state.attempt_number, error)

    end = giving_up or threading.Event()
    retrying = tenacity.Retrying(
        stop=tenacity.stop_after_attempt(len(WAITS) + 1) | tenacity.stop_when_event_set(end),
        wait=tenacity.wait_chain(*(tenacity.wait_fixed(seconds) for seconds in WAITS)),
        retry=tenacity.retry_if_exception_type(StorageDown),
        sleep=tenacity.sleep_using_event(end),
        before_sleep=announce,
        reraise=True,
    )
    return retrying(work)
