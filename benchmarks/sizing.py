"""A MODEL, not a measurement: what a cluster needs, from a few measured constants and assumptions.

    python -m benchmarks.sizing [--gpu-tflops 44] [--link-gbit 25] [--workers 8]

Prints the tables of docs/operations.md; a test holds them equal for the defaults. Put in what
`era doctor` and a GPU of yours show, and read the tables again.

What 64 and 512 GPUs ask of the store for a million pairs: `python -m benchmarks.scale`.
"""

from __future__ import annotations

import argparse

from benchmarks.table import markdown
from pipeline.config import load_train_config
from pipeline.train.sizing import GPU_TFLOPS, LINK_GBIT, need

PREPROCESS_S = 0.328  # CPU s of a pair of 1680x1120 pixels, measured (benchmarks/RESULTS.md)
BYTES_PER_PIXEL = 12  # of a pair: two uint16 RGB images; a radius map adds 2
BUCKET_MB = 200.0  # MB/s of one node from and to the bucket, assumed: `era doctor` measures yours

SETS = {"DPDD": (500, 1680, 1120), "LFDOF": (12_000, 1008, 688)}  # pairs as published
RUNS = ("light", "base", "paper")  # training configurations


def tables(args: argparse.Namespace) -> str:
    """The data sets' table and the runs' table, as Markdown."""
    rows = []
    for name, (pairs, width, height) in SETS.items():
        size = pairs * width * height * BYTES_PER_PIXEL
        cpu = PREPROCESS_S * pairs * width * height / (1680 * 1120)
        fill = size / 1e6 / BUCKET_MB
        rows.append([name, pairs, f"{size / 1e9:.1f} GB", f"{cpu / 60:.0f}", f"{fill / 60:.1f}"])
    columns = [
        "data set",
        "pairs",
        "shards",
        "CPU minutes to preprocess",
        "minutes to fill a cache",
    ]
    data = markdown(columns, rows)
    rows = []
    for name in RUNS:
        config = load_train_config(name)
        for workers in sorted({1, args.workers}):
            n = need(config, args.gpu_tflops, args.link_gbit, workers)
            rows.append(
                [
                    f"{name}, {workers} GPU",
                    f"{n.compute * 1e3:.1f}",
                    f"{n.all_reduce * 1e3:.1f}",
                    f"{n.rate:.0f}",
                    f"{config.train.steps * n.step / 86_400:.2f}",
                    f"{n.memory / 1e9:.1f}",
                    f"{n.loader_cores:.2f}",
                    f"{n.checkpoint / 1e6:.0f} MB",
                    f"{n.checkpoint / 1e6 / BUCKET_MB:.1f}",
                ]
            )
    columns = ["run", "compute ms per step", "all-reduce ms per step", "samples per second"]
    columns += [
        "days for the whole run",
        "GB on each GPU",
        "cores to load, all nodes",
        "checkpoint",
        "s to upload it",
    ]
    return f"{data}\n\n{markdown(columns, rows)}"


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """The assumed hardware."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--gpu-tflops", type=float, default=GPU_TFLOPS, help="that a GPU reaches")
    parser.add_argument("--link-gbit", type=float, default=LINK_GBIT, help="of each worker")
    parser.add_argument("--workers", type=int, default=8, help="GPUs")
    return parser.parse_args(given)


if __name__ == "__main__":
    print(tables(arguments()))
