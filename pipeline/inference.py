"""Restoring one photograph of any size: whole where it fits, else in blended tiles.

The blur is estimated once on the whole photograph, so that tiles agree about it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from era import ErA, Estimate
from pipeline.images import from_float, to_float

Image = np.ndarray[Any, Any]
MAX_PIXELS = 1024 * 1024  # more is cut into tiles
TILE, OVERLAP = 768, 128  # pixels; the overlap is blended


@dataclass(frozen=True)
class Restoration:
    """A restored photograph and what the network said about its blur.

    Attributes:
        restored: (H, W, 3) of the input's type.
        restored_float: (H, W, 3) float32 in [0, 1], not requantised.
        kernels: (K, k, k). weights: (K, H, W), summing to 1.
        radius: (H, W), pixels. error: E (H, W, 3).
    """

    restored: Image
    restored_float: Image
    kernels: Image
    weights: Image
    radius: Image
    error: Image


@torch.inference_mode()
def restore_array(
    model: ErA, blur: Image, *, max_pixels: int = MAX_PIXELS, device: str = "cpu"
) -> Restoration:
    """Restore a photograph (H, W, 3), uint8 or uint16, with a model in eval mode."""
    height, width = blur.shape[:2]
    image = torch.from_numpy(to_float(blur)).permute(2, 0, 1)[None].to(device)
    estimate = model.estimate(image)
    weights = estimate.weights(0, 0, height, width)
    if height * width <= max_pixels:
        output = model(image, estimate, weights)
        restored, error = output.restored, output.error
    else:
        restored, error = _tiled(model, image, estimate)
    floats = _array(restored[0].permute(1, 2, 0))
    return Restoration(
        restored=from_float(floats, blur.dtype),
        restored_float=floats,
        kernels=_array(estimate.kernels[0]),
        weights=_array(weights[0]),
        radius=_array(model.radius(weights)[0, 0]),
        error=_array(error[0].permute(1, 2, 0)),
    )


def _tiled(model: ErA, image: Tensor, estimate: Estimate) -> tuple[Tensor, Tensor]:
    sums = torch.zeros(1, 6, *image.shape[-2:], device=image.device)
    shares = torch.zeros(1, 1, *image.shape[-2:], device=image.device)
    for top, bottom in _spans(image.shape[-2]):
        for left, right in _spans(image.shape[-1]):
            weights = estimate.weights(top, left, bottom - top, right - left)
            output = model(image[..., top:bottom, left:right], estimate, weights)
            share = _window(bottom - top, image)[:, None] * _window(right - left, image)
            both = torch.cat([output.restored, output.error], dim=1)
            sums[..., top:bottom, left:right] += share * both
            shares[..., top:bottom, left:right] += share
    restored, error = (sums / shares).split(3, dim=1)
    return restored, error


def _spans(length: int) -> Iterator[tuple[int, int]]:
    """Equal overlapping spans of at most TILE pixels that cover `length`."""
    if length <= TILE:
        yield 0, length
        return
    count = -(-(length - OVERLAP) // (TILE - OVERLAP))
    for index in range(count):
        start = round(index * (length - TILE) / (count - 1))
        yield start, start + TILE


def _window(length: int, like: Tensor) -> Tensor:
    """A raised cosine over the overlap at both ends, 1 between, never 0."""
    ramp = torch.arange(length, device=like.device, dtype=like.dtype) + 0.5
    edge = torch.minimum(ramp, ramp.flip(0)) / OVERLAP
    return 0.5 - 0.5 * torch.cos(torch.pi * edge.clamp(max=1.0)) + 1e-4


def _array(tensor: Tensor) -> Image:
    return tensor.float().cpu().numpy()
