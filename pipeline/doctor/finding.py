"""The result of a check."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipeline.errors import masked

State = Literal["ok", "warning", "failure"]
OK: State = "ok"
WARNING: State = "warning"
FAILURE: State = "failure"


@dataclass(frozen=True)
class Finding:
    """One line: what was checked, its state and, unless it is ok, the cure."""

    check: str
    state: State
    text: str

    def __post_init__(self) -> None:
        """Mask secrets: addresses and servers are repeated as the user gave them."""
        object.__setattr__(self, "text", masked(self.text))


def judged(check: str, good: bool, text: str, cure: str, otherwise: State = WARNING) -> Finding:
    """A finding that is ok or not; the cure is shown only where one is needed."""
    return Finding(check, OK, text) if good else Finding(check, otherwise, f"{text}; {cure}")
