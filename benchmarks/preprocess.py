"""What preprocessing costs compared with decoding the PNGs alone, and where the time goes.

python -m benchmarks.preprocess
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2

from benchmarks.loader import PAIRS, SIZE, make_pairs
from benchmarks.table import machine, markdown, record
from pipeline.data.shards import ShardWriter
from pipeline.preprocess.convert import ShardJob, convert
from pipeline.preprocess.layouts import read_layout
from pipeline.preprocess.precheck import precheck

ROUNDS = 5
MANY, SMALL = 1000, (373, 560)
ALL, ALONE = "**all of it**", "decoding the PNGs alone, by OpenCV"


def cpu(work: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of this process, all threads, and the result."""
    began = time.process_time()
    result = work()
    return time.process_time() - began, result


def decode_all(folder: Path) -> None:
    """Decode every PNG, and do nothing with it."""
    for path in sorted(folder.rglob("*.png")):
        cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


def measured(scratch: Path) -> dict[str, float]:
    """CPU seconds of one round, by part."""
    alone, _ = cpu(lambda: decode_all(scratch / "pairs"))
    layout = read_layout("folder", str(scratch / "pairs"))
    looking, found = cpu(lambda: precheck(str(scratch / "pairs"), layout))
    hashes = {key: header.sha256 for key, header in found.headers.items()}
    pairs = layout.splits["train"]
    job = ShardJob(str(scratch / "pairs"), str(scratch / "out"), "shard-0.tar", pairs, hashes)
    spent: dict[str, float] = {}
    convert_module = sys.modules["pipeline.preprocess.convert"]
    parts = [
        (convert_module, "_read", "reading and decoding"),
        (convert_module, "sharpness_map", "sharpness map"),
        (convert_module, "_refuse_bad", "checks of the pair"),
        (convert_module, "_seen", "statistics and thumbnail"),
        (ShardWriter, "add", "writing the tar"),
        (ShardWriter, "close", "sha256 of the shard"),
    ]
    real = [getattr(owner, function) for owner, function, _ in parts]
    for owner, function, label in parts:
        setattr(owner, function, _timed(getattr(owner, function), label, spent))
    converting, _ = cpu(lambda: convert(job))
    for (owner, function, _), whole in zip(parts, real, strict=True):
        setattr(owner, function, whole)
    return {
        "inspection: sha256 and chunk checksums of the sources": looking,
        **spent,
        "the rest": converting - sum(spent.values()),
        ALL: looking + converting,
        ALONE: alone,
    }


def command(source: Path, dest: Path, processors: set[int]) -> float:
    """Seconds of `era preprocess` in a process that may use these processors."""
    call = [sys.executable, "-m", "pipeline", "preprocess", "--dataset", "folder"]
    call += ["--source", str(source), "--dest", str(dest)]
    began = time.perf_counter()
    subprocess.run(
        call,
        check=True,
        capture_output=True,
        preexec_fn=lambda: os.sched_setaffinity(0, processors),
    )
    return time.perf_counter() - began


def scaling(scratch: Path) -> str:
    """How much faster the whole command is on two processors than on one."""
    make_pairs(scratch / "many", MANY, SMALL)
    both = sorted(os.sched_getaffinity(0))[:2]
    rounds = []
    for number in range(3):
        for processors in ({both[0]}, set(both)):
            dest = scratch / f"many-{number}-{len(processors)}"
            rounds.append(command(scratch / "many", dest, processors))
    ratios = sorted(one / two for one, two in zip(rounds[::2], rounds[1::2], strict=True))
    return (
        f"`era preprocess` of {MANY:,} pairs of {SMALL[1]}x{SMALL[0]} pixels: "
        f"{statistics.median(rounds[::2]):.1f} s on one processor, "
        f"{statistics.median(rounds[1::2]):.1f} s on two, {statistics.median(ratios):.2f} times as "
        f"fast ({ratios[0]:.2f} to {ratios[-1]:.2f}; 3 rounds, the command's start included)."
    )


def main() -> None:
    """Measure and record."""
    with tempfile.TemporaryDirectory() as name:
        make_pairs(Path(name) / "pairs")
        measured(Path(name))  # imports, and the files' way into memory
        rounds = [measured(Path(name)) for _ in range(ROUNDS)]
        scaled = scaling(Path(name))
    rows = [[part, statistics.median(one[part] for one in rounds) / PAIRS] for part in rounds[0]]
    rates = sorted(one[ALONE] / one[ALL] for one in rounds)
    text = [
        f"{machine()}. {PAIRS} pairs of {SIZE[1]}x{SIZE[0]} pixels, 16-bit PNG; medians of "
        f"{ROUNDS} rounds; `python -m benchmarks.preprocess`.",
        "",
        markdown(("CPU seconds per pair", ""), rows),
        "",
        f"Preprocessing reaches {statistics.median(rates):.0%} ({rates[0]:.0%} to {rates[-1]:.0%}) "
        "of the rate of decoding alone.",
        "",
        scaled,
    ]
    record("Preprocess", "\n".join(text))


def _timed(real: Callable[..., Any], label: str, spent: dict[str, float]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        seconds, result = cpu(lambda: real(*args, **kwargs))
        spent[label] = spent.get(label, 0.0) + seconds
        return result

    return call


if __name__ == "__main__":
    main()
