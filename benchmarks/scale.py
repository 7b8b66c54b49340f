"""What grows with a data set, a run's age and a cluster: bytes, time and requests to the store.

    python -m benchmarks.scale

Requests are counted by a proxy in front of a real S3 server. Those of a cluster follow from them:
what each rank or node asks for, times their number.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.loader import s3
from benchmarks.table import machine, markdown, record
from pipeline.checkpoint.prune import Pruner
from pipeline.config import load_train_config
from pipeline.data.entries import SampleEntry
from pipeline.data.manifest import Manifest, Shard, parse_manifest
from pipeline.data.shards import Sample, ShardWriter
from pipeline.data.split import open_split
from pipeline.runfolder import RunFolder, fingerprint
from pipeline.runs import list_runs
from pipeline.train.sizing import GPU_TFLOPS, LINK_GBIT, need
from tests.faulty_proxy import FaultyProxy, faulty_proxy

MANIFESTS, PER_SHARD = (10_000, 100_000, 1_000_000), 5
SETS, SMALL_SHARD = (10, 1_000, 100_000), 50  # samples, and samples in each of their shards
ATTEMPTS = CHECKPOINTS = (1, 100, 1_000)
GPUS, PER_NODE = (64, 512), 8
SHARD_MB, PAIR_MB = 128, 22.6  # of pairs of 1680x1120 pixels
METHODS = ("LIST", "HEAD", "GET", "PUT", "DELETE")


def manifest(samples: int) -> bytes:
    """A manifest of pairs of 1680x1120 pixels."""
    places = {"blur.npy": (512, 11289728), "sharp.npy": (11290624, 11289728)}
    places["json"] = (22580736, 1500)
    crcs = dict.fromkeys(places, 987654321)
    entries = [SampleEntry(f"#######_{n}", 1120, 1680, places, crcs) for n in range(PER_SHARD)]
    one = Manifest("dpdd", "train", 16, True, False, [Shard("#.tar", 12 << 20, "a" * 64, entries)])
    text = one.to_json().replace(str(12 << 20), "120000000")
    start, end = text.index("  {\n"), text.index("\n ],\n")
    shards = (
        text[start:end].replace("#######", f"{n:07d}").replace("#", f"shard-{n:05d}")
        for n in range(samples // PER_SHARD)
    )
    head = text[:start].replace(f'"samples": {PER_SHARD},', f'"samples": {samples},', 1)
    head = head.replace('"bytes": 120000000,', f'"bytes": {samples // PER_SHARD * 120000000},', 1)
    return (head + ",\n".join(shards) + text[end:]).encode()


def resident() -> float:
    """GB of memory that this process has now."""
    with open("/proc/self/statm") as stream:  # noqa: PTH123
        return int(stream.read().split()[1]) * 4096 / 1e9


def measure(samples: int) -> None:
    """Print the bytes, CPU seconds and GB of one manifest."""
    data = manifest(samples)
    before, began = resident(), time.process_time()
    parsed = parse_manifest(data, "manifest")
    assert parsed.samples == samples
    print(len(data) / 1e6, time.process_time() - began, resident() - before)


def manifests() -> str:
    """Measure each in a process of its own."""
    rows = []
    for count in MANIFESTS:
        command = [sys.executable, "-m", "benchmarks.scale", str(count)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        shards = -(-count * PAIR_MB // SHARD_MB)
        rows.append([f"{count:,}", f"{shards:,.0f}", *map(float, done.stdout.split())])
    columns = ["samples", f"shards of {SHARD_MB} MiB", "MB of manifest", "CPU s to parse it"]
    return markdown([*columns, "GB kept in each process"], rows)


@contextmanager
def counted(proxy: FaultyProxy) -> Iterator[Counter[str]]:
    """The requests meanwhile, by kind."""
    found: Counter[str] = Counter()
    proxy.asked.clear()
    yield found
    found.update("LIST" if "list-type" in path else method for method, path, _ in proxy.asked)


def make_split(folder: Path, samples: int) -> None:
    """A split of pictures of 16x16 pixels."""
    folder.mkdir(parents=True)
    shards, image = [], np.zeros((16, 16, 3), np.uint16)
    for first in range(0, samples, SMALL_SHARD):
        writer = ShardWriter(folder / f"shard-{first // SMALL_SHARD:05d}.tar")
        for index in range(first, min(first + SMALL_SHARD, samples)):
            writer.add(Sample(f"k{index}", image, image, meta={"index": index}))
        shards.append(writer.close())
    made = Manifest("folder", "train", 16, True, False, shards)
    (folder / "manifest.json").write_text(made.to_json())


def data_rows(proxy: FaultyProxy, caches: Path) -> Iterator[list[object]]:
    """Requests of one node for data sets of growing size."""
    for samples in SETS:
        opening = partial(open_split, f"s3://data/{samples}", str(caches / str(samples)))
        with counted(proxy) as start:
            split = opening()
        with counted(proxy) as again:
            opening()
        shards = len(split.manifest.shards)
        with counted(proxy) as first:
            for shard in range(shards):
                split.shards.get(shard)
        with counted(proxy) as later:
            for index in range(0, samples, max(1, samples // 1000)):
                split.load(index)
        parts = {
            "start, first rank of a node": start,
            "start, other ranks; later starts": again,
            "first epoch, each node": first,
            "later epochs": later,
        }
        for what, found in parts.items():
            yield [f"{samples:,} samples, {shards:,} shards", what, *_of(found)]


def make_run(folder: Path, attempts: int, checkpoints: int) -> None:
    """A run's folder after a number of attempts and checkpoints."""
    meta = json.dumps({"format": "era-checkpoint/1", "step": 0, "model": {}}).encode()
    lines = []
    (folder / "attempts").mkdir(parents=True)
    for number in range(1, attempts + 1):
        line = {"attempt": number, "id": f"{number:016x}", "free": {"filler": "x" * 900}}
        lines.append(json.dumps(line) + "\n")
        (folder / "attempts" / f"{number:04d}-{number:016x}.json").write_text(lines[-1])
    (folder / "attempts.jsonl").write_text("".join(lines))
    for step in range(1, checkpoints + 1):
        there = folder / "checkpoints" / f"step-{step:08d}"
        there.mkdir(parents=True)
        (there / "meta.json").write_bytes(meta)
        files = {"meta.json": fingerprint(meta)}
        commit = {"format": "era-checkpoint/1", "step": step, "metrics": {"val/psnr": float(step)}}
        (there / "COMMIT").write_text(json.dumps({**commit, "files": files}))
    (folder / "config.yaml").write_text("train: {steps: 10}\n")


def run_rows(proxy: FaultyProxy) -> Iterator[list[object]]:
    """Requests of a run that has many attempts and keeps many checkpoints."""
    for attempts, checkpoints in zip(ATTEMPTS, CHECKPOINTS, strict=True):
        folder = RunFolder(f"s3://data/run-{attempts}")
        pruner = Pruner(folder, lambda: None)
        for what, work in _works(folder, pruner).items():
            with counted(proxy) as found:
                work()
            yield [f"{attempts:,} attempts, {checkpoints:,} checkpoints", what, *_of(found)]


def _works(folder: RunFolder, pruner: Pruner) -> dict[str, Callable[[], object]]:
    config = load_train_config("tiny")
    return {
        "an attempt begins": lambda: folder.begin_attempt(config, None),
        "the latest checkpoint is found": folder.latest,
        "the owner is checked, before each write": lambda: folder.require_owner(f"9999-{'f' * 16}"),
        "checkpoints are pruned, first time": lambda: pruner.prune(2000, 10**6),
        "checkpoints are pruned, later": lambda: pruner.prune(2000, 10**6),
        "`era runs list`": lambda: list_runs(folder.url),
    }


def _of(found: Counter[str]) -> list[object]:
    return [found[method] for method in METHODS]


def clusters(first: int, other: int, shard: int) -> str:
    """A model: requests of clusters for a million pairs, from those of a rank and of a shard.

    Args:
        first: HEAD and LIST of a node's first rank at a start. other: of its other ranks.
        shard: HEAD of a shard.
    """
    rows = []
    shards = round(1_000_000 * PAIR_MB / SHARD_MB)
    for gpus in GPUS:
        nodes = gpus // PER_NODE
        heads = nodes * first + (gpus - nodes) * other
        row = [gpus, nodes, heads, f"{nodes * shards * shard:,}", f"{nodes * shards:,}"]
        rows.append([*row, nodes * 417 / 1e3])
    columns = ["GPUs", "nodes", "HEAD and LIST at a start", "HEAD in the first epoch"]
    return markdown([*columns, "shards fetched, all nodes", "GB of manifests read at first"], rows)


def growth() -> str:
    """A model: metrics.jsonl and samples.jsonl, which each checkpoint and the run hold whole."""
    rows = []
    for name in ("light", "base", "paper"):
        config = load_train_config(name)
        steps, batch = config.train.steps, config.train.global_batch
        stages = {"light": 5, "base": 5, "paper": 10}[name]
        line = 400 + 4 * 40 * stages  # bytes; of which the scalars of each stage
        metrics = steps / config.tracking.log_every * line / 1e6
        samples = steps * batch * 45 / 1e6  # an id and a crc32
        saves = steps // config.checkpoint.every
        size = need(config, GPU_TFLOPS, LINK_GBIT, 8).checkpoint / 1e6
        equal = size * 1e6 * config.tracking.log_every / (2 * line)
        row = [name, saves, size, metrics, samples, saves * metrics / 1e3, saves * size / 1e3]
        rows.append([*row, f"{equal:,.0f} of {steps:,}"])
    columns = ["run", "checkpoints", "MB of each", "MB of metrics.jsonl at the end"]
    columns += ["MB of samples.jsonl, if asked for", "GB of metrics uploaded, all of the run"]
    columns += ["GB of checkpoints uploaded", "step from which a save uploads more metrics"]
    return markdown(columns, rows)


def main() -> None:
    """Measure and record tables."""
    with tempfile.TemporaryDirectory() as name:
        buckets = Path(name) / "buckets"
        for samples in SETS:  # the server would not see what is written behind its back
            make_split(buckets / "data" / str(samples), samples)
        for attempts, checkpoints in zip(ATTEMPTS, CHECKPOINTS, strict=True):
            make_run(buckets / "data" / f"run-{attempts}", attempts, checkpoints)
        os.environ["RCLONE_DIR_CACHE_TIME"] = "1h"
        with (
            s3(buckets),
            faulty_proxy(os.environ["AWS_ENDPOINT_URL"], lambda method, path: "") as proxy,
        ):
            os.environ["AWS_ENDPOINT_URL"] = proxy.endpoint
            data = list(data_rows(proxy, Path(name) / "caches"))
            runs = list(run_rows(proxy))
    first, other = (sum(int(str(count)) for count in row[2:4]) for row in data[:2])
    columns = ["", "what", *METHODS]
    parts = [
        f"{machine()}. `python -m benchmarks.scale`. Requests are counted; what clusters "
        "and growth come to is computed.",
        manifests(),
        markdown(columns, data),
        markdown(columns, runs),
        f"A million pairs, {PER_NODE} GPUs in a node:",
        clusters(first, other, 1),
        growth(),
    ]
    record("Large data sets", "\n\n".join(parts))


if __name__ == "__main__":
    measure(int(sys.argv[1])) if len(sys.argv) > 1 else main()
