"""Restoring one photograph of any size: whole where it fits, else in blended tiles.

The blur is estimated once on the whole photograph, so that tiles agree about it. Memory beyond the
photograph itself is bounded by the tile.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from era import ErA, ErAConfig, Estimate
from pipeline.errors import UserError
from pipeline.images import from_float, to_float

Image = np.ndarray[Any, Any]
MAX_PIXELS = 1024 * 1024  # more is cut into tiles
GRID = 16  # pixels; the strides of every size of network divide it
OVERLAP = 128  # pixels, blended; more than the priors look around


@dataclass(frozen=True)
class Restoration:
    """A restored photograph and what the network said about its blur.

    Attributes:
        restored: (H, W, 3) of the input's type.
        restored_float: (H, W, 3) float32 in [0, 1], not requantised.
        kernels: (K, k, k). coarse_radius: (H/4, W/4), pixels.
        weights: (K, H, W), summing to 1. radius: (H, W), pixels. error: E (H, W, 3). These three
            are empty unless maps were asked for.
    """

    restored: Image
    restored_float: Image
    kernels: Image
    coarse_radius: Image
    weights: Image
    radius: Image
    error: Image


@torch.inference_mode()
def restore_array(
    model: ErA,
    blur: Image,
    *,
    max_pixels: int = MAX_PIXELS,
    maps: bool = True,
    device: str = "cpu",
) -> Restoration:
    """Restore a photograph (H, W, 3), uint8 or uint16, with a model in eval mode."""
    height, width = blur.shape[:2]
    estimate = model.estimate(_tensor(blur, device))
    if height * width <= max_pixels:
        restored, error = _tile(model, blur, estimate, (0, height), (0, width), device)
    else:
        restored, error = _tiled(model, blur, estimate, max_pixels, maps, device)
    nothing = np.zeros((0, 0, 0), np.float32)
    weights = estimate.weights(0, 0, height, width) if maps else None
    return Restoration(
        restored=from_float(restored, blur.dtype),
        restored_float=restored,
        kernels=_array(estimate.kernels[0]),
        coarse_radius=_array(model.radius(estimate.coarse)[0, 0]),
        weights=nothing if weights is None else _array(weights[0]),
        radius=nothing if weights is None else _array(model.radius(weights)[0, 0]),
        error=error if maps else nothing,
    )


def pixels_for(config: ErAConfig, memory_gb: float) -> int:
    """The largest number of pixels that the network may work on at once in so much memory.

    A rough count, not a measurement: real and complex arrays for each kernel and colour, and the
    features of the prior's finest level.

    Raises:
        UserError: for a memory that is no positive number.
    """
    if not 0 < memory_gb < math.inf:
        raise UserError(f"--memory {memory_gb}: expected a number of GB above 0")
    per_pixel = 4 * (14 * config.kernels + 10 * config.prior_channels[0] + 100)
    return max((2 * OVERLAP) ** 2, int(memory_gb * 1e9 / per_pixel))


def _tile(
    model: ErA,
    blur: Image,
    estimate: Estimate,
    rows: tuple[int, int],
    columns: tuple[int, int],
    device: str,
) -> tuple[Image, Image]:
    (top, bottom), (left, right) = rows, columns
    weights = estimate.weights(top, left, bottom - top, right - left)
    output = model(_tensor(blur[top:bottom, left:right], device), estimate, weights)
    restored, error = (_array(x[0].permute(1, 2, 0)) for x in (output.restored, output.error))
    return restored, error


def _tiled(
    model: ErA, blur: Image, estimate: Estimate, max_pixels: int, maps: bool, device: str
) -> tuple[Image, Image]:
    restored = np.zeros(blur.shape, np.float32)
    error = np.zeros(blur.shape if maps else (0, 0, 0), np.float32)
    shares = np.zeros((*blur.shape[:2], 1), np.float32)
    side = max(2 * OVERLAP, math.isqrt(max_pixels))
    for top, bottom in _spans(blur.shape[0], side):
        for left, right in _spans(blur.shape[1], side):
            place = slice(top, bottom), slice(left, right)
            tiles = _tile(model, blur, estimate, (top, bottom), (left, right), device)
            share = (_window(bottom - top)[:, None] * _window(right - left))[..., None]
            restored[place] += share * tiles[0]
            shares[place] += share
            if maps:
                error[place] += share * tiles[1]
    np.divide(restored, shares, out=restored)
    if maps:
        np.divide(error, shares, out=error)
    return restored, error


def _spans(length: int, side: int) -> Iterator[tuple[int, int]]:
    """Overlapping spans of about `side` pixels that cover `length`, starting on the grid."""
    if length <= side:
        yield 0, length
        return
    count = -(-(length - OVERLAP) // (side - OVERLAP))
    starts = [index * (length - side) // (count - 1) // GRID * GRID for index in range(count)]
    for index, start in enumerate(starts):
        yield start, length if index == count - 1 else start + side


def _window(length: int) -> Image:
    """A raised cosine over the overlap at both ends, 1 between, never 0."""
    ramp = np.arange(length, dtype=np.float32) + 0.5
    edge = np.minimum(ramp, ramp[::-1]) / OVERLAP
    return np.asarray(0.5 - 0.5 * np.cos(np.pi * np.minimum(edge, 1.0)) + 1e-4, np.float32)


def _tensor(image: Image, device: str) -> Tensor:
    return torch.from_numpy(to_float(image)).permute(2, 0, 1)[None].to(device)


def _array(tensor: Tensor) -> Image:
    return tensor.float().cpu().numpy()
