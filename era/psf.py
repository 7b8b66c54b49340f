"""The bank of point spread functions: disks with a small correction estimated per image."""

from __future__ import annotations

import torch
from torch import Tensor

CORRECTIONS = 4  # softness, rim, two of astigmatism
OVERSAMPLING = 8  # sub-pixels per pixel and axis when a disk is drawn


def bank_radii(count: int, radius_max: float) -> Tensor:
    """Radii (K,) of the bank in pixels, from 0 (no blur) to `radius_max`, evenly spaced."""
    return torch.linspace(0.0, radius_max, count) if count > 1 else torch.tensor([radius_max])


def disk(radius: float, size: int) -> Tensor:
    """A disk (size, size) of `radius` pixels that sums to 1, its edge anti-aliased."""
    offsets = (torch.arange(size * OVERSAMPLING, dtype=torch.float64) + 0.5) / OVERSAMPLING
    offsets = offsets - size / 2
    inside = (offsets[:, None].square() + offsets[None, :].square()) <= max(radius, 0.5) ** 2
    kernel = inside.to(torch.float64).reshape(size, OVERSAMPLING, size, OVERSAMPLING).sum((1, 3))
    if radius < 0.5:  # a disk within one pixel blurs nothing
        kernel = torch.zeros_like(kernel)
        kernel[size // 2, size // 2] = 1.0
    return (kernel / kernel.sum()).float()


class PsfBank:
    """K disks and the basis of their corrections.

    A corrected kernel is (1 - s) disk exp(a t + b t cos 2v + c t sin 2v) + s gaussian, normalised
    to sum 1: s softens the edge towards a Gaussian of standard deviation radius/2, a brightens
    (> 0) or dims the rim, b and c stretch it; t = (rho / radius)^2, v is the angle. This takes four
    numbers per kernel instead of k*k, and every kernel is non-negative.
    """

    def __init__(self, count: int, size: int, radius_max: float) -> None:
        self.radii = bank_radii(count, radius_max)
        y, x = torch.meshgrid(*[torch.arange(size) - size // 2] * 2, indexing="ij")
        square = (x.square() + y.square()).float()
        t = square / self.radii.clamp_min(0.5).square()[:, None, None]
        angle = 2 * torch.atan2(y.float(), x.float())
        self.disks = torch.stack([disk(float(radius), size) for radius in self.radii])
        gauss = torch.exp(-2 * t)  # sigma = radius / 2
        self.gaussians = gauss / gauss.sum(dim=(-2, -1), keepdim=True)
        self.gaussians[self.radii < 0.5] = self.disks[self.radii < 0.5]
        t = t.clamp_max(1.5)
        self.bases = torch.stack([t, t * angle.cos(), t * angle.sin()], dim=1)  # (K, 3, k, k)


def corrected(disks: Tensor, gaussians: Tensor, bases: Tensor, coefficients: Tensor) -> Tensor:
    """Kernels (B, K, k, k) from a bank and coefficients (B, K, 4), non-negative, each summing to 1.

    Zero coefficients give nearly the disks: the softness starts at 5 % to have a gradient.
    """
    softness = torch.sigmoid(coefficients[..., 0] - 3.0)[..., None, None]
    shape = 2 * torch.tanh(coefficients[..., 1:] / 2)
    # No einsum: autocast would round it to bfloat16.
    profile = disks * torch.exp((shape[..., None, None] * bases).sum(dim=2))
    profile = profile / profile.sum(dim=(-2, -1), keepdim=True)
    return (1 - softness) * profile + softness * gaussians
