"""The types of the schema's keys, and how each is read from YAML as it was written."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from pipeline.config.yaml_text import NUMBER, plain_value

LONGEST = 4096  # characters of a text
TRUE, FALSE = ("true", "yes", "on", "y", "1"), ("false", "no", "off", "n", "0")


@dataclass(frozen=True)
class Workers:
    """The number of training processes: `least` to `most`; equal unless the run is elastic."""

    least: int
    most: int

    def to_plain(self) -> int | list[int]:
        """As a configuration file has it."""
        return self.least if self.least == self.most else [self.least, self.most]


class Deterministic(StrEnum):
    """How far the arithmetic is reproducible; see docs/exactness.md."""

    OFF = "false"
    ON = "true"
    STRICT = "strict"
    AUTO = "auto"

    def to_plain(self) -> bool | str:
        """As a configuration file has it."""
        return {"true": True, "false": False}.get(self.value, self.value)


class Unfit(ValueError):
    """A value is not of its key's type; the message says what was expected."""


def _text(node: Node) -> str:
    value = _scalar(node, "expected a text")
    if len(value) > LONGEST:
        raise Unfit(f"expected a text of at most {LONGEST} characters")
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in value):
        raise Unfit("expected a text without control characters")
    return value


def _whole(node: Node) -> int:
    value = _scalar(node, "expected a whole number")
    if not re.fullmatch(r"[-+]?[0-9][0-9_]{0,99}", value, re.ASCII):
        raise Unfit("expected a whole number")
    return int(value.replace("_", ""))


def _number(node: Node) -> float:
    value = _scalar(node, "expected a number").replace("_", "").lower()
    if not re.fullmatch(rf"{NUMBER}|[-+]?\.?(inf|nan)", value, re.ASCII):
        raise Unfit("expected a number")
    return float(value.replace(".inf", "inf").replace(".nan", "nan"))


def _flag(node: Node) -> bool:
    value = _scalar(node, "expected true or false").lower()
    if value not in TRUE + FALSE:
        raise Unfit("expected true or false")
    return value in TRUE


def _wholes(node: Node) -> tuple[int, ...]:
    if not isinstance(node, SequenceNode):
        raise Unfit("expected a list of whole numbers, such as [96, 128]")
    return tuple(_whole(item) for item in node.value)


def _mapping(node: Node) -> dict[str, Any]:
    if not isinstance(node, MappingNode):
        raise Unfit("expected a mapping, such as {stages: 3}")
    found: dict[str, Any] = plain_value(node)
    return found


def _workers(node: Node) -> Workers:
    expected = "must be a number >= 1 or [least, most]"
    try:
        if isinstance(node, SequenceNode):
            least, most = (_whole(item) for item in node.value)
        else:
            least = most = _whole(node)
    except ValueError:
        raise Unfit(expected) from None
    if least < 1:
        raise Unfit(expected)
    return Workers(least, most)


def _deterministic(node: Node) -> Deterministic:
    value = _scalar(node, "").lower()
    value = {**dict.fromkeys(TRUE, "true"), **dict.fromkeys(FALSE, "false")}.get(value, value)
    if value not in [choice.value for choice in Deterministic]:
        raise Unfit("must be true, false, auto or strict")
    return Deterministic(value)


def _scalar(node: Node, expected: str) -> str:
    if not isinstance(node, ScalarNode):
        raise Unfit(expected or "expected a single value")
    return str(node.value)


READERS: dict[Any, Callable[[Node], Any]] = {
    str: _text,
    int: _whole,
    float: _number,
    bool: _flag,
    tuple[int, ...]: _wholes,
    dict[str, Any]: _mapping,
    Workers: _workers,
    Deterministic: _deterministic,
}
