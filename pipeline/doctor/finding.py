"""The result of a check."""

from __future__ import annotations

from dataclasses import dataclass

OK, WARNING, FAILURE = "ok", "warning", "failure"


@dataclass(frozen=True)
class Finding:
    """One line: what was checked, its state and, unless it is ok, the cure."""

    check: str
    state: str
    text: str


def judged(check: str, good: bool, text: str, cure: str, otherwise: str = WARNING) -> Finding:
    """A finding that is ok or not; the cure is shown only where one is needed."""
    return Finding(check, OK, text) if good else Finding(check, otherwise, f"{text}; {cure}")
