"""The search space: checks, grid points and random points, all as pure functions."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pipeline.config import TrainConfig
from pipeline.config.yaml_text import inline
from pipeline.errors import UserError

Space = dict[str, dict[str, list[Any]]]
Point = dict[str, Any]
LARGEST = 2**53  # of a range's ends: exact as a float
MOST_CHOICES = 1000  # of a key: each is checked against the schema
RANGES = ("uniform", "loguniform", "int")


def check_space(space: Space, training: Callable[[Sequence[str]], TrainConfig]) -> None:
    """Check every key against the training schema, at both ends of its range.

    Raises:
        UserError: for an unknown key, a bad range, or a value that training would refuse.
    """
    for key, domain in space.items():
        if not isinstance(domain, dict) or len(domain) != 1:
            raise UserError(f"space.{key}: expected one of choice, {', '.join(RANGES)}")
        ((kind, values),) = domain.items()
        if not isinstance(values, list) or not values:
            raise UserError(f"space.{key}: {kind} needs a list of values")
        if len(values) > MOST_CHOICES:
            raise UserError(f"space.{key}: {len(values)} choices; at most {MOST_CHOICES} are taken")
        if kind in RANGES:
            _check_range(key, kind, values)
        elif kind != "choice":
            raise UserError(f"space.{key}: {kind!r} is not one of choice, {', '.join(RANGES)}")
        for value in values:
            training(overrides_of({key: value}))


def _check_range(key: str, kind: str, values: list[Any]) -> None:
    types = (int,) if kind == "int" else (int, float)
    if len(values) != 2 or not all(type(v) in types and abs(v) <= LARGEST for v in values):
        number = "whole numbers" if kind == "int" else "numbers"
        raise UserError(f"space.{key}: {kind} needs two {number}, the least and the greatest")
    if values[0] >= values[1] or (kind == "loguniform" and values[0] <= 0):
        raise UserError(
            f"space.{key}: {kind} {values}: the least must be below the greatest"
            + (" and above 0" if kind == "loguniform" else "")
        )


def sizes(space: Space) -> int | None:
    """The number of points of a grid; None where a key has no choices."""
    if any("choice" not in domain for domain in space.values()):
        return None
    return math.prod(len(domain["choice"]) for domain in space.values())


def grid(space: Space) -> list[Point]:
    """All combinations of the choices, the last key changing fastest."""
    choices = [domain["choice"] for domain in space.values()]
    return [dict(zip(space, values, strict=True)) for values in itertools.product(*choices)]


def random_points(space: Space, count: int, seed: int) -> list[Point]:
    """Points by a keyed generator: point i is the same whatever `count` is."""
    return [{k: draw(d, f"{seed}/{i}/{k}") for k, d in space.items()} for i in range(count)]


def keyed(key: str) -> np.random.Generator:
    """A generator whose draws depend on the key alone."""
    digest = hashlib.sha256(f"era/tune/{key}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


def draw(domain: dict[str, list[Any]], key: str) -> Any:
    """A value of a domain, which depends on the key alone."""
    rng = keyed(key)
    ((kind, values),) = domain.items()
    if kind == "choice":
        return values[int(rng.integers(len(values)))]
    if kind == "int":
        return int(rng.integers(values[0], values[1] + 1))
    if kind == "uniform":
        return float(rng.uniform(*values))
    return float(math.exp(rng.uniform(math.log(values[0]), math.log(values[1]))))


def overrides_of(point: Point) -> list[str]:
    """A point as overrides of the training configuration."""
    return [f"{key}={inline(value)}" for key, value in point.items()]


def value_at(config: dict[str, Any], key: str) -> Any:
    """The value of a key such as ``train.ema`` in a configuration of plain values, else None."""
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def in_space(space: Space, point: Point) -> bool:
    """Whether a point has exactly the space's keys, each with a value of its domain."""
    return point.keys() == space.keys() and all(
        _in_domain(domain, point[key]) for key, domain in space.items()
    )


def spelling(value: Any) -> str:
    """Equal for equal choices: a configuration has 1.0 where its sweep says 1."""
    number = isinstance(value, int) and not isinstance(value, bool) and abs(value) <= LARGEST
    return json.dumps(float(value) if number else value)


def _in_domain(domain: dict[str, list[Any]], value: Any) -> bool:
    ((kind, values),) = domain.items()
    if kind == "choice":
        return spelling(value) in map(spelling, values)
    types = (int,) if kind == "int" else (int, float)
    return type(value) in types and values[0] <= value <= values[1]
