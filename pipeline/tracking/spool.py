"""JSON-lines files kept locally, put whole with each checkpoint, cut back on resume."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline import storage


class Spool:
    """One growing JSON-lines file of a run.

    Args:
        path: the local file.
        remote: the run's copy, from which a resumed run goes on.
        keep: says of a line whether it belongs to what the checkpoint knows; from the first line
            that does not, everything is dropped.
    """

    def __init__(self, path: Path, remote: str, keep: Callable[[dict[str, Any]], bool]) -> None:
        self.path = path
        lines = storage.read_text(remote).splitlines() if storage.exists(remote) else []
        kept = []
        for line in lines:
            if not keep(json.loads(line)):
                break
            kept.append(line + "\n")
        path.write_text("".join(kept), encoding="utf-8")

    def add(self, line: dict[str, Any]) -> None:
        """Append a line."""
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")

    def content(self) -> bytes:
        """The whole file."""
        return self.path.read_bytes()
