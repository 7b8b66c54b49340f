"""ErA: the unrolled augmented Lagrangian with learned priors and an estimated blur.

from era import ErA, named_config
output = ErA(named_config("tiny")).eval()(blur)   # blur: (B, 3, H, W) in [0, 1]
output.restored, output.kernels, output.weights, output.error
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from era.blur import SpatiallyVaryingBlur
from era.canvas import Canvas
from era.config import ErAConfig
from era.estimator import Estimate, KernelEstimator, luminance
from era.resunet import ResUNet
from era.unet import UNet
from era.updates import (
    P_FORMS,
    X_FORMS,
    Penalties,
    Prox,
    Scalar,
    XProblem,
    update_delta,
    update_e,
    update_gamma,
    update_omega,
    update_u,
    update_z,
)


@dataclass(frozen=True)
class Output:
    """The network's result for a batch of images (B, 3, H, W).

    Attributes:
        restored: (B, 3, H, W) in [0, 1]; not clamped in training mode.
        kernels: (B, K, k, k), non-negative, each summing to 1.
        weights: (B, K, H, W), summing to 1 over K.
        error: E (B, 3, H, W), the part of Y that H X cannot explain; zero without the error term.
        reblurred: H X (B, 3, H, W), computed on the canvas and cropped; None unless requested.
        error_share: fraction of non-zero elements of E, averaged over the stages.
    """

    restored: Tensor
    kernels: Tensor
    weights: Tensor
    error: Tensor
    reblurred: Tensor | None
    error_share: Tensor


class StageScalars(nn.Module):
    """lambda_1, lambda_2, lambda_3, lambda_E of each stage, parametrised through softplus."""

    def __init__(self, config: ErAConfig) -> None:
        super().__init__()
        starts = (config.lambda_1, config.lambda_2, config.lambda_3, config.lambda_e)
        raw = [_inverse_softplus(start) for start in starts]
        self.tied = config.tied_lambda_e
        self.raw = nn.Parameter(torch.tensor([raw] * config.stages))  # (T, 4)

    def forward(self, stage: int) -> Penalties:
        """The positive scalars of a stage, each of shape ()."""
        l1, l2, l3, lE = torch.nn.functional.softplus(self.raw[stage]).unbind()
        return Penalties(l1, l2, l3, l3 if self.tied else lE)


class ErA(nn.Module):
    """The error-aware deep unrolling network. Any image size; see `ErAConfig` for its shape."""

    def __init__(self, config: ErAConfig) -> None:
        super().__init__()
        self.config = config
        self.estimator = KernelEstimator(
            config.kernels, config.kernel_size, config.radius_max, config.estimator_channels
        )
        copies = 1 if config.share_priors else config.stages
        self.priors = nn.ModuleList(_prior(config) for _ in range(copies))
        data_channels = 1 if config.luminance else 3
        self.error_priors = nn.ModuleList(
            ResUNet(data_channels, data_channels, config.error_channels, config.error_blocks)
            for _ in range(copies if config.error_term and config.stages > 1 else 0)
        )
        self.scalars = StageScalars(config)

    def estimate(self, blur: Tensor) -> Estimate:
        """Estimate the blur of images (B, 3, H, W) in [0, 1]."""
        estimate: Estimate = self.estimator(blur)
        return estimate

    def radius(self, weights: Tensor) -> Tensor:
        """The expected blur radius in pixels: weights (B, K, H, W) -> (B, 1, H, W)."""
        return self.estimator.radius(weights)

    def prior_only(self, blur: Tensor) -> Tensor:
        """D_phi(Y) alone, without the data term: (B, 3, H, W) -> (B, 3, H, W), not clamped."""
        if self.config.prior_sees_blur:
            estimate, (height, width) = self.estimate(blur), blur.shape[-2:]
            maps = estimate.weights(0, 0, height, width), estimate.confidence(0, 0, height, width)
            blur = torch.cat([blur, *maps], dim=1)
        restored: Tensor = self.priors[0](blur)
        return restored

    def forward(
        self,
        blur: Tensor,
        estimate: Estimate | None = None,
        weights: Tensor | None = None,
        confidence: Tensor | None = None,
        reblur: bool = False,
    ) -> Output:
        """Restore images (B, 3, H, W) in [0, 1].

        Args:
            estimate: a blur estimated earlier, for example on the whole photograph; by default it
                is estimated from `blur`.
            weights: (B, K, H, W), the estimate's weights at this position, if `blur` is a tile.
            confidence: (B, 1, H, W) in [0, 1], the estimate's at this position; 0 where `blur` is
                not photograph but its mirrored border.
            reblur: also return H X.

        Raises:
            ValueError: unless `blur` is a tensor of that shape, not empty, of float32 or float64.
        """
        _require_images(blur)
        height, width = blur.shape[-2:]
        estimate = estimate or self.estimate(blur)
        if weights is None:
            weights = estimate.weights(0, 0, height, width)
        if confidence is None:
            confidence = estimate.confidence(0, 0, height, width)
        canvas = self.canvas(height, width)
        H = SpatiallyVaryingBlur(estimate.kernels, canvas.extend_edge(weights))
        X, E, share = self._solve(canvas.extend(blur), canvas.zero_pad(confidence), H)
        HX = H.apply(X) if reblur else None
        restored = canvas.crop(X)
        return Output(
            restored=restored if self.training else restored.clamp(0.0, 1.0),
            kernels=estimate.kernels,
            weights=weights,
            error=canvas.crop(E).expand_as(blur),
            reblurred=None if HX is None else canvas.crop(HX),
            error_share=share,
        )

    def canvas(self, height: int, width: int) -> Canvas:
        """The canvas for images of this size."""
        return Canvas.around(
            height, width, self.config.kernel_size - 1, 2 ** (len(self.config.prior_channels) - 1)
        )

    def _solve(
        self, Y: Tensor, M: Tensor, H: SpatiallyVaryingBlur
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The loop: Z, E and U, X, P, multipliers, T times; returns X, E and E's share.

        All variables but Z and X are in the data step's colour space, luminance or RGB; z and x
        are Z and X in that space.
        """
        config = self.config
        data: Callable[[Tensor], Tensor] = luminance if config.luminance else _itself
        x_form, p_form = X_FORMS[config.x_form], P_FORMS[config.p_form]
        seen = torch.cat([H.weights, M], dim=1) if config.prior_sees_blur else None
        X, Y = Y, data(Y)
        E = torch.zeros_like(Y)
        P: Scalar = 0.0
        Gamma: Scalar = 0.0
        Omega: Scalar = 0.0
        Delta: Scalar = 0.0
        shares = []
        for stage in range(config.stages):
            lam = self.scalars(stage)
            Z = update_z(X, Omega, lam, _beside(seen, self._prior(self.priors, stage)))
            if not config.data_step:
                X = Z
                continue
            z = data(Z)
            HZ = H.apply(z)
            if config.error_term:
                E = update_e(Y, HZ, Gamma, Delta, P, M, lam)
                shares.append((E != 0).sum() / ((M > 0).expand_as(E).sum()))
            U = update_u(HZ, Gamma, Y, E, M, lam)
            x = x_form(XProblem(H, z, HZ, U, z, Gamma, Omega, lam), config.x_steps)
            X = Z + (x - z)
            if stage + 1 == config.stages:
                break  # the remaining updates would only affect a next stage
            if config.error_term:
                P = p_form(E, Delta, P, lam, self._prior(self.error_priors, stage))
                Delta = update_delta(Delta, E, P, lam)
            Gamma = update_gamma(Gamma, H.apply(x), U, lam)
            Omega = update_omega(Omega, x, z, lam)
        return X, E, torch.stack(shares).mean() if shares else Y.new_zeros(())

    def _prior(self, networks: nn.ModuleList, stage: int) -> nn.Module:
        return networks[0 if self.config.share_priors else stage]


def parameter_groups(model: ErA, scalar_rate: float) -> Iterator[dict[str, object]]:
    """Optimiser groups: the networks, and the scalars at `scalar_rate` times the learning rate."""
    scalars = set(model.scalars.parameters())
    yield {"params": [p for p in model.parameters() if p not in scalars], "rate": 1.0}
    yield {"params": list(model.scalars.parameters()), "rate": scalar_rate}


def _prior(config: ErAConfig) -> nn.Module:
    inputs = 3 + (config.kernels + 1 if config.prior_sees_blur else 0)
    if config.prior == "unet":
        return UNet(config.prior_channels, inputs)
    return ResUNet(inputs, 3, config.prior_channels, config.prior_blocks)


def _beside(seen: Tensor | None, prior: Prox) -> Prox:
    """D_phi that sees maps (B, K + 1, H, W) of the blur beside the image."""
    return prior if seen is None else lambda image: prior(torch.cat([image, seen], dim=1))


def _itself(image: Tensor) -> Tensor:
    return image


def _inverse_softplus(value: float) -> float:
    """log(e^v - 1) without overflow."""
    return value + math.log(-math.expm1(-value))


def _require_images(blur: Tensor) -> None:
    fits = isinstance(blur, Tensor) and blur.ndim == 4 and blur.shape[1] == 3 and blur.numel()
    if not fits or blur.dtype not in (torch.float32, torch.float64):
        given = f"{blur.dtype} {tuple(blur.shape)}" if isinstance(blur, Tensor) else type(blur)
        raise ValueError(f"expected a float tensor (B, 3, H, W) in [0, 1], got {given}")
