"""What preprocessing costs compared with decoding the PNGs alone, and where the time goes.

python -m benchmarks.preprocess
"""

from __future__ import annotations

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


def cpu(work: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of this process, all threads, and the result."""
    began = time.process_time()
    result = work()
    return time.process_time() - began, result


def decode_all(folder: Path) -> None:
    """Decode every PNG, and do nothing with it."""
    for path in sorted(folder.rglob("*.png")):
        cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


def main() -> None:
    """Measure and record."""
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        make_pairs(scratch / "pairs")
        decode_all(scratch / "pairs")
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
        for owner, function, label in parts:
            setattr(owner, function, _timed(getattr(owner, function), label, spent))
        converting, _ = cpu(lambda: convert(job))
    total = looking + converting
    rows = [["inspection: sha256 and chunk checksums of the sources", looking / PAIRS]]
    rows += [[label, seconds / PAIRS] for label, seconds in spent.items()]
    rows += [["the rest", (converting - sum(spent.values())) / PAIRS]]
    rows += [["**all of it**", total / PAIRS], ["decoding the PNGs alone", alone / PAIRS]]
    text = [
        f"{machine()}. {PAIRS} pairs of {SIZE[1]}x{SIZE[0]} pixels, 16-bit PNG; "
        "`python -m benchmarks.preprocess`.",
        "",
        markdown(("CPU seconds per pair", ""), rows),
        "",
        f"Preprocessing reaches {alone / total:.0%} of the rate of decoding alone.",
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
