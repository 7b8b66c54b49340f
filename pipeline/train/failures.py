"""Classifies failures: user errors, preemptions, and all others."""

from __future__ import annotations

import re
from collections.abc import Iterator

from pipeline.errors import ENVIRONMENT, UserError

# In the words of Ray's memory monitor, of torch (CUDA's allocator, the processor's) and of NumPy.
NO_MEMORY = re.compile("running low on memory|out of memory|allocate memory|Unable to allocate")
USED = re.compile(r"was (\S+ used / \S+) limit")  # Ray's words about the node


def find_user_error(error: BaseException) -> UserError | None:
    """The `UserError` inside what Ray raised, if there is one."""
    return next((inner for inner in _inside(error) if isinstance(inner, UserError)), None)


def was_preempted(error: BaseException) -> bool:
    """Whether a worker died because its node was preempted."""
    return any(getattr(inner, "preempted", False) for inner in _inside(error))


def out_of_memory(error: BaseException) -> str:
    """What to do where a worker had too little memory; empty if that was not the reason."""
    texts = [str(inner) for inner in _inside(error)]
    if not any(NO_MEMORY.search(text) for text in texts):
        return ""
    used = next(filter(None, map(USED.search, texts)), None)
    where = f" on its node ({used[1]})" if used else ""
    cure = "a smaller scaling.micro_batch or train.patch, or more memory for each worker"
    return f"out of memory{where}; what helps: {cure}"


def fault_of_environment(error: BaseException) -> bool:
    """Whether a full disk, missing rights or the like ended a worker: no bug of this program."""
    return any(isinstance(e, OSError) and e.errno in ENVIRONMENT for e in _inside(error))


def root_cause(error: BaseException) -> str:
    """The innermost error, in one short line."""
    if reason := out_of_memory(error):
        return reason
    innermost = list(_inside(error))[-1]
    lines = str(innermost).strip().splitlines() or [type(innermost).__name__]
    return f"{type(innermost).__name__}: {lines[-1][:300]}"


def _inside(error: BaseException) -> Iterator[BaseException]:
    """The error and everything that it wraps: Ray's worker failures, causes and contexts."""
    waiting: list[BaseException] = [error]
    seen: set[int] = set()
    while waiting:
        current = waiting.pop(0)
        if id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        failures = getattr(current, "worker_failures", {}) or {}
        candidates = [*failures.values()]
        candidates += [getattr(current, name, None) for name in ("_base_exc", "cause")]
        candidates += [current.__cause__, current.__context__]
        waiting += [c for c in candidates if isinstance(c, BaseException)]
