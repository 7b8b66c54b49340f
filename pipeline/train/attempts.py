"""`attempts.jsonl`: when each attempt of a run began, with which free settings; `chaos.jsonl`."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from pipeline import storage
from pipeline.config import TrainConfig
from pipeline.train.freeze import free_part


class Attempts:
    """The attempts of one run, as its driver sees them."""

    def __init__(self, run_url: str) -> None:
        self.url = storage.join(run_url, "attempts.jsonl")
        self.chaos_url = storage.join(run_url, "chaos.jsonl")
        self.kills = len(read_lines(self.chaos_url))

    def begin(self, config: TrainConfig, resumed_from: int | None) -> None:
        """Write down that an attempt begins."""
        line = {
            "attempt": len(read_lines(self.url)) + 1,
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "workers": config.scaling.workers,
            "resumed_from": resumed_from,
            "free": free_part(config),
        }
        append_line(self.url, line)

    def chaos_struck(self) -> bool:
        """Whether the run killed one of its own workers since the last question."""
        before, self.kills = self.kills, len(read_lines(self.chaos_url))
        return self.kills > before


def read_lines(url: str) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file; a missing file has none."""
    if not storage.exists(url):
        return []
    return [json.loads(line) for line in storage.read_text(url).splitlines() if line.strip()]


def append_line(url: str, line: dict[str, Any]) -> None:
    """Add a line to a small JSON-lines file (rewritten whole: S3 has no append)."""
    before = storage.read_text(url) if storage.exists(url) else ""
    storage.write_text(url, before + json.dumps(line) + "\n")
