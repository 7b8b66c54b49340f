"""A blur and a network small enough for dense matrices, in float64."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from era import ErAConfig, SpatiallyVaryingBlur

SMALL = ErAConfig(
    stages=3,
    kernels=3,
    kernel_size=7,
    radius_max=3.0,
    prior_channels=(4, 8),
    error_channels=(4,),
    estimator_channels=(4, 8),
)


def rand(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, generator=generator, dtype=torch.float64)


def blur_of(
    kernels: int = 3, height: int = 12, width: int = 15, size: int = 5, batch: int = 1
) -> SpatiallyVaryingBlur:
    h = rand(batch, kernels, size, size, seed=1)
    w = rand(batch, kernels, height, width, seed=2).add(0.1)
    return SpatiallyVaryingBlur(h / h.sum((-2, -1), keepdim=True), w / w.sum(1, keepdim=True))


def dense(operator: Callable[[Tensor], Tensor], height: int, width: int) -> Tensor:
    """The matrix of a linear operator on one-channel images."""
    eye = torch.eye(height * width, dtype=torch.float64).view(-1, 1, 1, height, width)
    return torch.stack([operator(e).reshape(-1) for e in eye], dim=1)
