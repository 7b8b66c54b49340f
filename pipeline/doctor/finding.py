"""What a check says."""

from __future__ import annotations

from dataclasses import dataclass

OK, WARNING, FAILURE = "ok", "warning", "failure"


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, how it is and, unless it is well, what cures it."""

    check: str
    state: str
    text: str


def judged(check: str, good: bool, text: str, cure: str, otherwise: str = WARNING) -> Finding:
    """A finding that is well or not; the cure is shown only where it is needed."""
    return Finding(check, OK, text) if good else Finding(check, otherwise, f"{text}; {cure}")
