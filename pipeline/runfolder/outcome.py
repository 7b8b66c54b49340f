"""What a command leaves in its folder, for when its pods are gone: `result.json`, and its log.

Runs and sweeps depend on neither: where the store refuses them, that is logged, and the command
goes on. `era submit` answers from `result.json`.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import Any

from pydantic import JsonValue

from pipeline import storage
from pipeline.border import validated
from pipeline.errors import (
    DamagedError,
    SafeFormatter,
    StorageDown,
    UserError,
    finite,
    one_line,
    publishable,
)
from pipeline.runfolder.names import LOGS, RESULT

log = logging.getLogger("era")
KEPT = 1_000_000  # characters of a log: a line each ten seconds for a day


def write_result(url: str, summary: dict[str, Any]) -> None:
    """Write a run's or sweep's result, unless it is there already.

    Args:
        url: of the folder. summary: what the command prints with `--json`.
    """
    wanted = finite(publishable(summary))
    try:
        if read_result(url) != wanted:
            storage.write_json(storage.join(url, RESULT), wanted)
    except UserError as error:
        log.warning("the result is not kept: %s", error)


def read_result(url: str) -> dict[str, JsonValue] | None:
    """What `write_result` has written; None where it is missing or damaged.

    Raises:
        UserError: if the storage cannot be read.
    """
    place = storage.join(url, RESULT)
    if not storage.exists(place):
        return None
    try:
        return validated(dict[str, JsonValue], storage.read_json(place), place)
    except DamagedError:
        return None


class KeptLog(logging.Handler):
    """While open, keeps the end of what the program logs; written when it closes.

    Nothing is written until an attempt has begun, and where another command has taken over.
    """

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(SafeFormatter("%(asctime)s %(message)s"))
        self.lines: deque[str] = deque()
        self.length = 0
        self.url = ""
        self.require: Callable[[], object] = lambda: None

    def keep(self, url: str, attempt: str, require: Callable[[], object]) -> None:
        """Say where it belongs.

        Args:
            url: of the run or sweep. attempt: the command's first.
            require: raises where another command has taken the folder over.
        """
        self.url = self.url or storage.join(url, LOGS, f"{attempt}.log")
        self.require = require

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line."""
        self._add(self.format(record))

    def __enter__(self) -> KeptLog:
        log.addHandler(self)
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        log.removeHandler(self)
        if error is not None:
            self._add(one_line(f"ended by {type(error).__name__}: {error}"))
        if not self.url or isinstance(error, StorageDown):
            return
        try:
            self.require()
        except UserError:
            return
        try:
            storage.write_text(self.url, "".join(self.lines))
        except UserError as failure:
            log.warning("the log is not kept: %s", failure)

    def _add(self, line: str) -> None:
        self.lines.append(f"{line}\n")
        self.length += len(line) + 1
        while self.length > KEPT:
            self.length -= len(self.lines.popleft())
