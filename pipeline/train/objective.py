"""The loss of a step in its three phases, and the learning rate: pure functions of the step."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from era import ErA, Loss, era_loss, radius_loss, restoration_loss
from pipeline.config.schema import LossSection, TrainSection

ESTIMATOR, PRIOR, JOINT = "estimator", "prior", "joint"


def phase_of(step: float, train: TrainSection, radius_known: bool) -> str:
    """The phase of a step: the blur estimator alone, the prior alone, then all together.

    Without true radii the estimator cannot be trained alone; those steps are joint ones.
    """
    if step < train.estimator_share * train.steps:
        return ESTIMATOR if radius_known else JOINT
    if step < (train.estimator_share + train.prior_share) * train.steps:
        return PRIOR
    return JOINT


def learning_rate(step: int, train: TrainSection) -> float:
    """Linear warm-up, then a cosine down to `train.min_learning_rate` at the last step."""
    warmup = train.warmup * train.steps
    if step < warmup:
        return train.learning_rate * (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1.0, train.steps - warmup)
    least = min(train.min_learning_rate, train.learning_rate)
    return least + (train.learning_rate - least) * 0.5 * (1 + math.cos(math.pi * progress))


def ema_decay(step: int, train: TrainSection) -> float:
    """The decay of the averaged weights: small at first, to forget the initial weights quickly."""
    return min(train.ema, (1 + step) / (10 + step))


class Objective(nn.Module):
    """The network and its loss in one module, so that DDP sees one forward pass.

    Args:
        model: the network.
        loss: weights of the terms.
    """

    def __init__(self, model: ErA, loss: LossSection) -> None:
        super().__init__()
        self.model = model
        self.weights = loss

    def forward(
        self, blur: Tensor, sharp: Tensor, radius: Tensor | None, phase: str
    ) -> tuple[Loss, Tensor]:
        """Losses (B,) of a batch (B, 3, S, S) and the share of non-zero E.

        `radius` is (B, 1, S, S) in pixels, NaN where unknown.
        """
        model = self.model
        if phase == PRIOR:
            restored = restoration_loss(model.prior_only(blur), blur, sharp, self.weights.relative)
            zero = torch.zeros_like(restored)
            return Loss(restored, restored, zero, zero), zero.mean()
        if phase == ESTIMATOR:
            weights = model.estimate(blur).weights(0, 0, *blur.shape[-2:])
            assert radius is not None  # ensured by phase_of
            entropy = radius_loss(weights, model.estimator.radii, radius)
            zero = torch.zeros_like(entropy)
            return Loss(entropy, zero, zero, entropy), zero.mean()
        output = model(blur, reblur=self.weights.omega < 1)
        loss = era_loss(
            output,
            blur,
            sharp,
            self.weights.omega,
            self.weights.radius,
            radius,
            model.estimator.radii,
            self.weights.relative,
        )
        return loss, output.error_share.detach()
