"""What every benchmark shares: the machine's description and a table in Markdown."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from pathlib import Path

import torch

RESULTS = Path(__file__).with_name("RESULTS.md")


def machine() -> str:
    """The processor, the vectors that torch uses on it, and the number of cores."""
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    model = names[0] if names else platform.machine()
    vectors = torch.backends.cpu.get_cpu_capability()
    return f"{model} ({vectors}), {os.cpu_count()} processors, Python {platform.python_version()}"


def markdown(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; numbers with three significant digits."""
    lines = [" | ".join(columns), " | ".join("---" for _ in columns)]
    lines += [" | ".join(_text(value) for value in row) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


def record(title: str, text: str) -> None:
    """Print a section, and put it into RESULTS.md in the place of its last version."""
    print(f"\n## {title}\n\n{text}\n")
    whole = RESULTS.read_text() if RESULTS.exists() else "# Measured\n"
    sections = whole.split("\n## ")
    kept = [part for part in sections[1:] if part.partition("\n")[0] != title]
    parts = [sections[0].rstrip(), *(p.rstrip() for p in kept), f"{title}\n\n{text.rstrip()}"]
    RESULTS.write_text("\n\n## ".join(parts) + "\n")


def _text(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
