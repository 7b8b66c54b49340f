"""The training loss (poster, "Loss"): omega |X - X_gt|_1 + (1 - omega) |H X - Y|_1 (+ radius)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from era.model import Output


class Loss(NamedTuple):
    """Terms per sample, each of shape (B,), unweighted; `total` is their weighted sum."""

    total: Tensor
    restored: Tensor
    reblurred: Tensor
    radius: Tensor


def era_loss(
    output: Output,
    blur: Tensor,
    sharp: Tensor,
    omega: float = 0.5,
    radius_weight: float = 0.0,
    true_radius: Tensor | None = None,
    bank_radii: Tensor | None = None,
    relative: float = 0.0,
) -> Loss:
    """The loss of an output in training mode, given the sharp and the blurred image.

    If omega is below 1, the network must have been called with `reblur=True`.

    Args:
        blur, sharp: (B, 3, H, W) in [0, 1].
        omega: weight of the first term; the second has 1 - omega. H is applied to the prediction,
            not detached, on the uncropped canvas; the term is evaluated inside the photograph.
        radius_weight: weight of the third term, the cross-entropy of the weight map where the true
            blur radius is known.
        true_radius: (B, 1, H, W) in pixels; NaN where unknown.
        bank_radii: (K,), the bank's radii in pixels, see `radius_loss`.
        relative: see `restoration_loss`.

    Raises:
        ValueError: if omega is below 1 and the output has no `reblurred`.
    """
    restored = restoration_loss(output.restored, blur, sharp, relative)
    reblurred = torch.zeros_like(restored)
    if omega < 1:
        if output.reblurred is None:
            raise ValueError("omega below 1 needs H X: call the network with reblur=True")
        reblurred = _mean(output.reblurred - blur)
    total = omega * restored + (1 - omega) * reblurred
    radius = torch.zeros_like(total)
    if radius_weight and true_radius is not None and bank_radii is not None:
        radius = radius_loss(output.weights, bank_radii, true_radius)
        total = total + radius_weight * radius
    return Loss(total, restored, reblurred, radius)


def restoration_loss(
    restored: Tensor, blur: Tensor, sharp: Tensor, relative: float = 0.0
) -> Tensor:
    """|X - X_gt|_1 of images (B, 3, H, W), the mean over each: (B,).

    If `relative` is above 0, it is divided by |Y - X_gt|_1 + `relative`: the remaining fraction of
    each sample's error. Nearly sharp samples then count as much as strongly blurred ones, as they
    do in a gain in decibels.
    """
    error = _mean(restored - sharp)
    return error / (_mean(blur - sharp) + relative) if relative else error


def radius_loss(weights: Tensor, bank_radii: Tensor, true_radius: Tensor) -> Tensor:
    """Cross-entropy (B,) between a weight map and the true blur radius.

    Args:
        weights: (B, K, H, W), summing to 1 over K.
        bank_radii: (K,), increasing, evenly spaced, pixels.
        true_radius: (B, 1, H, W), pixels; NaN where unknown. A radius between two of the bank's is
            divided between them in proportion; one beyond the last is assigned to the last.
    """
    known = ~torch.isnan(true_radius)
    radius = torch.where(known, true_radius, torch.zeros_like(true_radius))
    target = share_between(radius[:, 0], bank_radii)
    entropy = -(target * torch.log(weights + 1e-6)).sum(dim=1, keepdim=True)
    return (entropy * known).sum(dim=(1, 2, 3)) / known.sum(dim=(1, 2, 3)).clamp_min(1)


def share_between(radius: Tensor, bank_radii: Tensor) -> Tensor:
    """Weights (B, K, H, W) that divide each radius (B, H, W) between its neighbours in the bank."""
    if len(bank_radii) == 1:
        return torch.ones_like(radius)[:, None]
    spacing = bank_radii[1] - bank_radii[0]
    inside = radius.clamp(bank_radii[0].to(radius), bank_radii[-1].to(radius))
    distance = (inside[:, None] - bank_radii[:, None, None].to(radius)).abs() / spacing.to(radius)
    return (1 - distance).clamp_min(0.0)


def _mean(difference: Tensor) -> Tensor:
    return difference.abs().mean(dim=(1, 2, 3))
