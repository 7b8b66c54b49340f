"""Which of two metric values is the better one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")
LOWER_IS_BETTER = ("loss", "mae", "lpips", "error", "seconds")


def higher_is_better(metric: str) -> bool:
    """False for losses and distances (by their name), true for psnr, ssim and all else."""
    return not any(part in metric.rpartition("/")[2].lower() for part in LOWER_IS_BETTER)


def ranked(items: Iterable[T], metric: str, metrics: Callable[[T], dict[str, float]]) -> list[T]:
    """The items that have a finite value of `metric`, best first; of equals, the later first."""
    sign = 1.0 if higher_is_better(metric) else -1.0
    scored = [(metrics(item).get(metric), place, item) for place, item in enumerate(items)]
    finite = [(sign * v, at, item) for v, at, item in scored if v is not None and math.isfinite(v)]
    return [item for *_, item in sorted(finite, key=lambda entry: entry[:2], reverse=True)]
