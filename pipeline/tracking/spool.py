"""JSON-lines files kept locally, put whole with each checkpoint, cut back on resume."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline import storage
from pipeline.errors import UserError


class Spool:
    """One growing JSON-lines file of a run, each line with a `step` that never falls.

    Args:
        path: the local file.
        remote: the run's copy, from which a resumed run goes on.
        last: lines of later steps are dropped: the checkpoint does not know them. Below 0 the copy
            is not read at all.

    Raises:
        UserError: if the run's copy is damaged, or missing where it must be.
    """

    def __init__(self, path: Path, remote: str, last: int) -> None:
        self.path = path
        text = storage.read_text(remote) if last >= 0 and storage.exists(remote) else ""
        kept = [line + "\n" for line in text.splitlines() if _step(line, remote) <= last]
        path.write_text("".join(kept), encoding="utf-8")

    def add(self, line: dict[str, Any]) -> None:
        """Append a line; numbers that are not finite become null, which JSON has."""
        plain = {k: _finite(v) for k, v in line.items()}
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(plain, allow_nan=False) + "\n")

    def content(self) -> bytes:
        """The whole file."""
        return self.path.read_bytes()

    def lines(self, start: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """Whole lines from byte `start` on, each with the byte after it."""
        with self.path.open("rb") as stream:
            stream.seek(start)
            for line in stream:
                if not line.endswith(b"\n"):
                    return
                start += len(line)
                yield start, json.loads(line)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _step(line: str, remote: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"{remote}: not the JSON lines of a run; restore it, or remove it"
        ) from None
