"""What preprocessing costs compared with decoding the PNGs alone, and where the time goes.

python -m benchmarks.preprocess
"""

from __future__ import annotations

import os
import shutil
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


def started(source: Path, dest: Path, processors: set[int]) -> subprocess.Popen[bytes]:
    """`era preprocess` in a process that may use these processors."""
    call = [sys.executable, "-m", "pipeline", "preprocess", "--dataset", "folder"]
    call += ["--source", str(source), "--dest", str(dest)]
    return subprocess.Popen(
        call,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: os.sched_setaffinity(0, processors),
    )


def seconds_of(runs: list[tuple[Path, Path, set[int]]]) -> float:
    """Seconds until commands that begin together have all ended."""
    began = time.perf_counter()
    processes = [started(*run) for run in runs]
    failed = [process.args for process in processes if process.wait()]
    if failed:
        raise RuntimeError(f"failed: {failed}")
    return time.perf_counter() - began


def scaling(scratch: Path) -> str:
    """How much faster the whole command is on two processors, and two commands of half of it."""
    whole, halves = scratch / "many", [scratch / "half-0", scratch / "half-1"]
    make_pairs(whole, MANY, SMALL)
    for half in halves:
        make_pairs(half, MANY // 2, SMALL)
    both = sorted(os.sched_getaffinity(0))[:2]
    rounds = []
    for number in range(3):
        out = scratch / f"scaled-{number}"
        apart = zip(halves, (out / "a", out / "b"), ({one} for one in both), strict=True)
        rounds.append(
            (
                seconds_of([(whole, out / "one", {both[0]})]),
                seconds_of([(whole, out / "two", set(both))]),
                seconds_of(list(apart)),
            )
        )
        shutil.rmtree(out)
    one, two, apart = (statistics.median(times) for times in zip(*rounds, strict=True))
    ratios, limits = (sorted(r[0] / r[place] for r in rounds) for place in (1, 2))
    return (
        f"`era preprocess` of {MANY:,} pairs of {SMALL[1]}x{SMALL[0]} pixels: {one:.1f} s on one "
        f"processor, {two:.1f} s on two, {statistics.median(ratios):.2f} times as fast "
        f"({ratios[0]:.2f} to {ratios[-1]:.2f}; 3 rounds, the command's start included). Two "
        f"commands at once, each with half of the pairs and a processor of its own: {apart:.1f} s, "
        f"{statistics.median(limits):.2f} times ({limits[0]:.2f} to {limits[-1]:.2f}), what the "
        "machine gives."
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
