"""From a loader's batch to tensors on the device, where flips, layout and range are applied."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.arrays import RADIUS_UNITS
from pipeline.data.batch import Batch

FULL = 65535.0


class Tensors(NamedTuple):
    """A rank's share of a step: (n, 3, S, S) float32 in [0, 1]; radius (n, 1, S, S) in pixels,
    NaN where it is not known, or None where no sample has it."""

    blur: Tensor
    sharp: Tensor
    radius: Tensor | None


def to_device(batch: Batch, device: torch.device, channels_last: bool = False) -> Tensors:
    """Copy a batch to the device and convert it to the network's format."""

    def image(raw: Tensor) -> Tensor:
        moved = raw.to(device, non_blocking=True).permute(0, 3, 1, 2).to(torch.float32) / FULL
        flipped = torch.stack([flip(x, int(f)) for x, f in zip(moved, batch.flips, strict=True)])
        return flipped.to(memory_format=torch.channels_last) if channels_last else flipped

    radius = None
    if batch.radius is not None:
        raw = batch.radius.to(device, non_blocking=True)
        pixels = raw.to(torch.float32)[:, None] / RADIUS_UNITS
        for index, known in enumerate(batch.has_radius.tolist()):
            if not known:  # a mask from the CPU would wait for the GPU
                pixels[index] = float("nan")
        radius = torch.stack([flip(x, int(f)) for x, f in zip(pixels, batch.flips, strict=True)])
    return Tensors(image(batch.blur), image(batch.sharp), radius)


def flip(image: Tensor, code: int) -> Tensor:
    """One of the eight symmetries of the square on the last two axes, see `order.Crop`."""
    if code & 4:
        image = image.transpose(-2, -1)
    axes = [axis for bit, axis in ((1, -1), (2, -2)) if code & bit]
    return image.flip(axes) if axes else image
