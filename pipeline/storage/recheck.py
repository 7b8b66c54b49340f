"""A condition that is checked again before every retried request: does the caller still own this?

A process that hung in the middle of an upload (a stopped node, a suspended machine) finds its
connection closed when it wakes up, and would repeat the request without asking. Within
`checked_before_retries` it asks first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from tenacity import RetryCallState

_condition: ContextVar[Callable[[], None] | None] = ContextVar("era_recheck", default=None)


@contextmanager
def checked_before_retries(condition: Callable[[], None]) -> Iterator[None]:
    """Call `condition` before every request of this thread that is sent again.

    Args:
        condition: raises an exception to abandon the request.
    """
    token = _condition.set(condition)
    try:
        yield
    finally:
        _condition.reset(token)


def recheck(state: RetryCallState) -> None:
    """Evaluate the condition; its own requests are not subject to it."""
    condition = _condition.get()
    if condition is None or state.attempt_number == 1:
        return
    token = _condition.set(None)
    try:
        condition()
    finally:
        _condition.reset(token)
