"""`attempts.jsonl`: when each attempt of a run began, with which free settings; `chaos.jsonl`."""

from __future__ import annotations

import json
import secrets
from datetime import UTC, datetime
from typing import Any

from pipeline import storage
from pipeline.config import TrainConfig
from pipeline.errors import UserError
from pipeline.train.freeze import free_part


class Attempts:
    """The attempts of one run, as its driver sees them."""

    def __init__(self, run_url: str) -> None:
        self.url = storage.join(run_url, "attempts.jsonl")
        self.chaos_url = storage.join(run_url, "chaos.jsonl")
        self.kills = len(read_lines(self.chaos_url))

    def begin(self, config: TrainConfig, resumed_from: int | None) -> str:
        """Write down that an attempt begins; return its id, which makes it the run's owner."""
        owner = secrets.token_hex(8)
        line = {
            "attempt": len(read_lines(self.url)) + 1,
            "id": owner,
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "workers": config.scaling.workers.to_plain(),
            "resumed_from": resumed_from,
            "free": free_part(config),
        }
        append_line(self.url, line)
        return owner

    def chaos_struck(self) -> bool:
        """Whether the run killed one of its own workers since the last question."""
        before, self.kills = self.kills, len(read_lines(self.chaos_url))
        return self.kills > before


def require_owner(run_url: str, owner: str) -> None:
    """Refuse to go on where another attempt has begun since: the newest one owns the run.

    Raises:
        UserError: in a driver that was held for dead, say, before it overwrites newer work.
    """
    lines = read_lines(storage.join(run_url, "attempts.jsonl"))
    if lines and lines[-1].get("id", owner) != owner:
        raise UserError(
            f"run {run_url}: attempt {lines[-1]['attempt']} has taken it over since; this one "
            "stops. Train under another run.name to have two runs"
        )


def read_lines(url: str) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file; a missing file has none."""
    if not storage.exists(url):
        return []
    return [json.loads(line) for line in storage.read_text(url).splitlines() if line.strip()]


def append_line(url: str, line: dict[str, Any]) -> None:
    """Add a line to a small JSON-lines file (rewritten whole: S3 has no append)."""
    before = storage.read_text(url) if storage.exists(url) else ""
    storage.write_text(url, before + json.dumps(line) + "\n")


def note_once(url: str, line: dict[str, Any]) -> bool:
    """Add a line unless its step is there already, from before a resume; return whether it was."""
    known = any(other["step"] == line["step"] for other in read_lines(url))
    if not known:
        append_line(url, line)
    return not known
