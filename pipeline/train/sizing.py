"""A model, not a measurement: what a run needs, from a few measured constants and assumptions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import era
from pipeline.config import TrainConfig

# Measured on two cores of an Intel Xeon (benchmarks/RESULTS.md).
CROP_MS_256 = 0.154  # CPU ms of a crop pair of 256 pixels, local copy, warm
CROP_MS_64 = 0.051  # the same of 64 pixels: what does not shrink with the area
CPU_TFLOPS = 0.03  # of one core, float32, forward and backward
# Read off the format and the code.
BYTES_PER_PARAMETER = 4  # float32 gradients
CHECKPOINT_COPIES = 4  # averaged weights, weights, two moments of Adam
TRAINING_COPIES = 5  # the same and the gradient
TRAINING_FACTOR = 3  # forward and backward against forward alone
# Measured on one H100 with base in bf16, eager (light reached 22).
GPU_TFLOPS = 44.0
# Assumed, never measured by us.
LINK_GBIT = 25.0
LINK_EFFICIENCY = 0.8  # of the nominal rate that an all-reduce reaches; nothing of it overlaps


@dataclass(frozen=True)
class Need:
    """What a run needs on a number of workers; `compute` and `all_reduce` are for one step."""

    parameters: int
    compute: float  # seconds
    all_reduce: float  # seconds
    rate: float  # samples per second, all workers
    loader_cores: float
    checkpoint: int  # bytes
    memory: float  # bytes on each worker

    @property
    def step(self) -> float:
        """Seconds of one step."""
        return self.compute + self.all_reduce


def need(config: TrainConfig, tflops: float, link_gbit: float, workers: int) -> Need:
    """The model itself.

    Args:
        config: the run's.
        tflops: rate that a worker reaches (not its data sheet's).
        link_gbit: bandwidth of each worker's link.
        workers: number of workers.
    """
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
        cost.parameters,
        compute,
        all_reduce,
        rate,
        rate * crop_ms(patch) / 1e3,
        gradient * CHECKPOINT_COPIES,
        gradient * TRAINING_COPIES
        + min(share, config.scaling.micro_batch or share)
        * activation_bytes(network, max(config.train.patch)),
    )


def activation_bytes(network: era.ErAConfig, patch: int) -> int:
    """Bytes that a training step keeps of one sample for the backward pass, in float32.

    Counted on tensors without content, each storage once. bf16 keeps about half of it; the
    workspaces of convolutions and the allocator's overhead come on top.
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
