"""A MODEL, not a measurement: what a cluster needs, from a few measured constants and assumptions.

    python -m benchmarks.sizing [--gpu-tflops 100] [--link-gbit 25] [--workers 8]

Prints the tables of docs/operations.md; a test holds them equal for the defaults. Put in what
`era doctor` and a GPU of yours show, and read the tables again.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import torch
from torch import Tensor

import era
from benchmarks.table import markdown
from pipeline.config import load_train_config

# Measured on two cores of an Intel Xeon (benchmarks/RESULTS.md).
CROP_MS_256 = 0.143  # CPU ms of a crop pair of 256 pixels, local copy, warm
CROP_MS_64 = 0.043  # the same of 64 pixels: what does not shrink with the area
PREPROCESS_S = 0.262  # CPU s of a pair of 1680x1120 pixels
# Read off the format and the code.
BYTES_PER_PIXEL = 12  # of a pair: two uint16 RGB images; a radius map adds 2
BYTES_PER_PARAMETER = 4  # float32 gradients
CHECKPOINT_COPIES = 4  # averaged weights, weights, two moments of Adam
TRAINING_COPIES = 5  # the same and the gradient
TRAINING_FACTOR = 3  # forward and backward against forward alone
# Assumed, never measured by us.
LINK_EFFICIENCY = 0.8  # of the nominal rate that an all-reduce reaches; nothing of it overlaps
BUCKET_MB = 200.0  # MB/s of one node from and to the bucket: `era doctor` measures yours

SETS = {"DPDD": (500, 1680, 1120), "LFDOF": (12_000, 1008, 688)}  # pairs as published
RUNS = ("light", "base", "paper")  # training configurations


@dataclass(frozen=True)
class Need:
    """What a run takes on so many GPUs, `compute` and `all_reduce` for one step."""

    compute: float  # seconds
    all_reduce: float  # seconds
    rate: float  # samples per second, all GPUs
    days: float  # for the whole run
    loader_cores: float
    checkpoint: int  # bytes
    memory: float  # bytes on each GPU


def need(name: str, tflops: float, link_gbit: float, workers: int) -> Need:
    """The model itself.

    Args:
        name: of a training configuration.
        tflops: that a GPU reaches (not its data sheet's).
        link_gbit: of each worker.
        workers: GPUs.
    """
    config = load_train_config(name)
    network = era.named_config(config.model.size, **config.model.overrides)
    patch = round(sum(config.train.patch) / len(config.train.patch))
    batch = config.train.global_batch
    share = -(-batch // workers)
    cost = era.cost(network, patch, patch)
    flop = 2 * cost.macs * TRAINING_FACTOR
    compute = share * flop / (tflops * 1e12)
    gradient = cost.parameters * BYTES_PER_PARAMETER
    all_reduce = 2 * (workers - 1) / workers * gradient / (link_gbit / 8 * 1e9 * LINK_EFFICIENCY)
    rate = batch / (compute + all_reduce)
    return Need(
        compute,
        all_reduce,
        rate,
        config.train.steps * batch / rate / 86_400,
        rate * crop_ms(patch) / 1e3,
        gradient * CHECKPOINT_COPIES,
        gradient * TRAINING_COPIES
        + min(share, config.scaling.micro_batch or share)
        * activation_bytes(network, max(config.train.patch)),
    )


def activation_bytes(network: era.ErAConfig, patch: int) -> int:
    """What a training step keeps of one sample for its way back, in float32.

    Counted on tensors without content, each storage once. bf16 keeps about half of it; what a
    convolution works with, and what an allocator wastes, come on top.
    """
    model = era.ErA(network).to("meta").train()
    own = {part.untyped_storage()._cdata for part in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    image = torch.empty(1, 3, patch, patch, device="meta")
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(image, reblur=True)
        era.era_loss(output, image, image)
    return sum(storage.nbytes() for storage in kept.values())


def crop_ms(patch: int) -> float:
    """CPU ms of a crop pair: a constant and a part that grows with the area, through two points."""
    area = (patch**2 - 64**2) / (256**2 - 64**2)
    return CROP_MS_64 + (CROP_MS_256 - CROP_MS_64) * area


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
        for workers in sorted({1, args.workers}):
            n = need(name, args.gpu_tflops, args.link_gbit, workers)
            rows.append(
                [
                    f"{name}, {workers} GPU",
                    f"{n.compute * 1e3:.1f}",
                    f"{n.all_reduce * 1e3:.1f}",
                    f"{n.rate:.0f}",
                    f"{n.days:.2f}",
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
    parser.add_argument("--gpu-tflops", type=float, default=100.0, help="that a GPU reaches")
    parser.add_argument("--link-gbit", type=float, default=25.0, help="of each worker")
    parser.add_argument("--workers", type=int, default=8, help="GPUs")
    return parser.parse_args(given)


if __name__ == "__main__":
    print(tables(arguments()))
