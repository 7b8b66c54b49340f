"""What this process may take of its machine: what is there, within its container's limits."""

from __future__ import annotations

import math
import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")  # version 2: a container sees its own limits there
UNKNOWN = 1 << 40  # bytes, where the system does not say how many are free


def processors() -> int:
    """Processors: those that the process may run on, and no more than its container's quota."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    quota, _, period = _text(CGROUP / "cpu.max").partition(" ")
    if quota.isdigit() and period.strip().isdigit():
        allowed = min(allowed or 1, math.ceil(int(quota) / int(period)))
    return max(1, allowed or 1)


def free_memory() -> int:
    """Bytes that the process may still take."""
    found = dict(line.split(":", 1) for line in _text(Path("/proc/meminfo")).splitlines())
    free = int(found["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in found else UNKNOWN
    most, used = (_text(CGROUP / name).strip() for name in ("memory.max", "memory.current"))
    if most.isdigit() and used.isdigit():
        cached = dict(line.split() for line in _text(CGROUP / "memory.stat").splitlines())
        free = min(free, int(most) - int(used) + int(cached.get("inactive_file", 0)))
    return max(0, free)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
