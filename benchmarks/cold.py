"""How fast a cold cache fills: this loader against `rclone copy`, from one server, in turn.

    python -m benchmarks.cold

The server is `rclone serve s3` behind `benchmarks.slow_link`, which adds 20 ms to every request and
lets 30 MB/s through a connection. A round is one copy by each, paired; other work on the machine
weighs on both.
"""

from __future__ import annotations

import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.loader import s3
from benchmarks.slow_link import RATE, ROUND_TRIP
from benchmarks.table import machine, markdown, record
from pipeline import storage
from pipeline.data.loader import TrainLoader
from pipeline.data.manifest import Manifest
from pipeline.data.order import OrderPlan
from pipeline.data.shards import Sample, ShardWriter
from pipeline.data.split import open_split

SHARDS, SAMPLES, SIDE, ROUNDS = 8, 8, 1180, 6  # shards of 134 MB


@dataclass(frozen=True)
class Round:
    """One measurement; bytes per second, seconds, seconds of CPU."""

    rate: float
    cpu: float
    first: float = 0.0
    whole_then: int = 0  # shards that were whole at the first batch


def make_split(folder: Path) -> int:
    """Shards of noise; returns their bytes."""
    folder.mkdir(parents=True)
    shards = []
    for number in range(SHARDS):
        writer = ShardWriter(folder / f"shard-{number:05d}.tar")
        for index in range(SAMPLES):
            rng = np.random.default_rng(number * SAMPLES + index)
            image = rng.integers(0, 65536, (SIDE, SIDE, 3), np.uint16)
            writer.add(Sample(f"k{number}-{index}", image, image[::-1]))
        shards.append(writer.close())
    manifest = Manifest("folder", "train", 16, True, False, shards)
    storage.write_text(str(folder / "manifest.json"), manifest.to_json())
    return manifest.bytes


def cpu() -> float:
    """CPU seconds of this process and its finished children."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(sum(resource.getrusage(kind)[:2]) for kind in kinds)


def ours(total: int, cache: Path) -> Round:
    """Fill a cache as training does, in the order of the first epoch."""
    os.sync()  # what was written before is not written during the measurement
    began, before = time.perf_counter(), cpu()
    split = open_split("s3://data/train", str(cache))
    plan = OrderPlan(0, 4, 4, SHARDS, (256,), 10**9, True, 0.0)
    loader = TrainLoader(split, plan, rank=0, world_size=1, start_step=0, steps=10**9)
    first_shard = split.shard_of(loader.order.image(0))
    loader._ahead.reach(0)  # type: ignore[union-attr]
    split.shards.get(first_shard)
    first = time.perf_counter() - began
    done = sorted((cache / "shards").glob("*.tar"))
    whole = len(done)
    while len(done) < SHARDS:
        time.sleep(0.05)
        done = list((cache / "shards").glob("*.tar"))
    seconds, spent = time.perf_counter() - began, cpu() - before
    loader.close()
    return Round(total / seconds, spent, first, whole)


def rclone(total: int, folder: Path) -> Round:
    """`rclone copy` as its users do it."""
    from tests.conftest import _rclone

    keys = os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]
    remote = (
        f":s3,provider=Rclone,endpoint='{os.environ['AWS_ENDPOINT_URL']}',access_key_id={keys[0]},"
        f"secret_access_key={keys[1]},force_path_style=true:data/train"
    )
    command = [_rclone(), "copy", remote, str(folder), "--transfers", "8"]
    # Without the cutoff it divides files of 256 MB and more only.
    command += ["--multi-thread-streams", "4", "--multi-thread-cutoff", "32M", "--include", "*.tar"]
    os.sync()
    began, before = time.perf_counter(), cpu()
    subprocess.run(command, check=True, env={**os.environ, "RCLONE_CONFIG": os.devnull})
    return Round(total / (time.perf_counter() - began), cpu() - before)


def main() -> None:
    """Measure in turn and record a table."""
    with tempfile.TemporaryDirectory() as name, s3(Path(name) / "buckets"):
        scratch = Path(name)
        total = make_split(scratch / "buckets" / "data" / "train")
        port = int(os.environ["AWS_ENDPOINT_URL"].rpartition(":")[2])
        slow = 20000 + os.getpid() % 20000
        command = [sys.executable, "-m", "benchmarks.slow_link", str(slow), str(port)]
        link = subprocess.Popen(command)
        os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{slow}"
        try:
            time.sleep(2)
            storage.exists("s3://data/train")  # the client's import and its first connection
            rounds = []
            for number in range(ROUNDS):
                places = [scratch / f"{kind}{number}" for kind in ("cache", "copy")]
                if number % 2:  # either goes first in half of the rounds
                    theirs = rclone(total, places[1])
                    rounds.append((ours(total, places[0]), theirs))
                else:
                    rounds.append((ours(total, places[0]), rclone(total, places[1])))
                print(rounds[-1], file=sys.stderr)
                for place in places:
                    shutil.rmtree(place)
        finally:
            link.kill()
            link.wait()
    report(total, rounds)


def report(total: int, rounds: list[tuple[Round, Round]]) -> None:
    """Print and record."""
    rows = []
    for name, found in zip(
        ("era, cold cache", "rclone copy"), zip(*rounds, strict=True), strict=True
    ):
        rates = [one.rate / 1e6 for one in found]
        spent = statistics.median(one.cpu for one in found) / total * 1e9
        rows.append([name, statistics.median(rates), min(rates), max(rates), spent])
    ratios = [ours.rate / theirs.rate for ours, theirs in rounds]
    rows.append(["era / rclone", statistics.median(ratios), min(ratios), max(ratios), ""])
    first = statistics.median(ours.first for ours, _ in rounds)
    whole = [ours.whole_then for ours, _ in rounds]
    text = [
        f"{machine()}. {SHARDS} shards, {total / 1e6:.0f} MB in all, behind a proxy that adds "
        f"{ROUND_TRIP * 1e3:.0f} ms and lets {RATE / 1e6:.0f} MB/s through a connection; "
        f"{ROUNDS} rounds, each first in half of them; "
        "rclone with `--transfers 8 --multi-thread-streams 4 --multi-thread-cutoff 32M`; "
        "`python -m benchmarks.cold`.",
        "",
        markdown(["", "MB/s, median", "least", "most", "CPU s per GB"], rows),
        "",
        f"The first shard can be read after {first:.2f} s (median); whole by then, itself counted: "
        + ", ".join(map(str, whole))
        + f" of {SHARDS}.",
    ]
    record("Cold cache", "\n".join(text))


if __name__ == "__main__":
    main()
