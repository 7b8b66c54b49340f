"""JSON-lines files of a run. They are untrusted: whoever can write to the store may edit them."""

from __future__ import annotations

import json
import math
from typing import Any, TypeGuard

from pipeline import storage
from pipeline.border import BadInput, parse_json
from pipeline.errors import UserError

Line = dict[str, Any]


def read_lines(url: str) -> list[Line]:
    """The objects of a JSON-lines file; a missing file has none. NaN and Infinity become None.

    Raises:
        UserError: if a line is not a JSON object.
    """
    return parse_lines(storage.read_text(url), url) if storage.exists(url) else []


def parse_lines(text: str, url: str) -> list[Line]:
    """The objects of a JSON-lines text.

    Args:
        text: its lines. url: where it came from, for messages.

    Raises:
        UserError: if a line is not a JSON object.
    """
    return [parse_line(line, url) for line in text.splitlines() if line.strip()]


def parse_line(line: str, url: str) -> Line:
    """The object of one line.

    Raises:
        UserError: if it is not a JSON object.
    """
    try:
        value = parse_json(line.encode("utf-8", "surrogatepass"), url, nan_is_null=True)
    except BadInput:
        value = None
    if not isinstance(value, dict):
        raise UserError(_damaged(url))
    return value


def step_of_line(line: Line, url: str) -> int:
    """The `step` of a line.

    Raises:
        UserError: if it has none, or one that is no count.
    """
    step = line.get("step")
    if isinstance(step, bool) or not isinstance(step, int) or step < 0:
        raise UserError(_damaged(url))
    return step


def numbers(values: Line) -> dict[str, float]:
    """The entries whose values are finite numbers."""
    return {key: value for key, value in values.items() if is_number(value)}


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a JSON value is a finite number (and no truth value)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) < 1e300 and math.isfinite(value)


def format_line(line: Line) -> str:
    """One line of a JSON-lines file."""
    return json.dumps(line) + "\n"


def _damaged(url: str) -> str:
    return f"{url}: not the JSON lines of a run; restore it, or remove it"
