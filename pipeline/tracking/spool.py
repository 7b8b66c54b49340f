"""JSON-lines files kept locally, uploaded whole with each checkpoint, truncated on resume."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline import storage
from pipeline.runfolder import parse_line, step_of_line


class Spool:
    """One growing JSON-lines file of a run, each line with a `step` that never decreases.

    Args:
        path: the local file.
        remote: URL of the run's file, from which a resumed run continues.
        last: lines of later steps are dropped: the checkpoint does not cover them. Below 0 the file
            starts empty.
        copy: the checkpoint's copy of the file, used instead of the run's own.
        needed: without a copy, the run's own file must exist.

    Raises:
        UserError: if a line is damaged, or the file is missing where it is needed.
    """

    def __init__(
        self, path: Path, remote: str, last: int, copy: bytes | None = None, needed: bool = False
    ) -> None:
        self.path = path
        text = _earlier(remote, copy, needed) if last >= 0 else ""
        kept = [line for line in text.splitlines() if line and _step(line, remote) <= last]
        path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")

    def add(self, line: dict[str, Any]) -> None:
        """Append a line; numbers that are not finite become null, since JSON has no others."""
        plain = {k: _finite(v) for k, v in line.items()}
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(plain, allow_nan=False) + "\n")

    def content(self) -> bytes:
        """The whole file."""
        return self.path.read_bytes()

    def lines(self, start: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """Complete lines from byte `start` on, each with the offset of the byte after it."""
        with self.path.open("rb") as stream:
            stream.seek(start)
            for line in stream:
                if not line.endswith(b"\n"):
                    return
                start += len(line)
                yield start, json.loads(line)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _earlier(remote: str, copy: bytes | None, needed: bool) -> str:
    if copy is not None:
        return copy.decode("utf-8", errors="replace")
    if needed or storage.exists(remote):
        return storage.read_text(remote)
    return ""


def _step(line: str, remote: str) -> int:
    return step_of_line(parse_line(line, remote), remote)
