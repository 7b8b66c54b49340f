"""Progress of long work: a bar on a terminal, plain lines elsewhere (such as a pod's log)."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
LINE_EVERY_SECONDS = 10.0


def track(items: Iterable[T], total: int, label: str) -> Iterator[T]:
    """Yield the items and show on standard error how many of `total` are done."""
    if sys.stderr.isatty():
        yield from _bar(items, total, label)
    else:
        yield from _lines(items, total, label)


def _bar(items: Iterable[T], total: int, label: str) -> Iterator[T]:
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import track as rich_track

    console = Console(stderr=True)
    yield from rich_track(items, total=total, description=escape(label), console=console)


def _lines(items: Iterable[T], total: int, label: str) -> Iterator[T]:
    log = logging.getLogger("era")
    last = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        if done == total or time.monotonic() - last >= LINE_EVERY_SECONDS:
            last = time.monotonic()
            log.info("%s: %d of %d", label, done, total)
