"""The state that exact resumption needs: networks, optimiser, running averages."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from era import ErA, named_config, parameter_groups
from pipeline.config.schema import TrainConfig
from pipeline.errors import UserError
from pipeline.train.objective import ema_decay, learning_rate


@dataclass
class Averages:
    """Sums since the last line of metrics; saved in checkpoints, so that curves have no gaps."""

    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, values: dict[str, float]) -> None:
        """Add one step's values; non-finite ones are left out of the means."""
        for name, value in values.items():
            if math.isfinite(value):
                self.sums[name] = self.sums.get(name, 0.0) + value
                self.counts[name] = self.counts.get(name, 0) + 1

    def take(self) -> dict[str, float]:
        """Return the means and reset the sums."""
        means = {name: total / self.counts[name] for name, total in self.sums.items()}
        self.sums, self.counts = {}, {}
        return means


class TrainState:
    """The mutable state of a run on one rank; the same on every rank.

    Args:
        config: the run's configuration.
        device: where the networks live.
    """

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        self.config = config
        torch.manual_seed(config.train.seed)  # the initial weights; nothing else draws from it
        self.model = ErA(named_config(config.model.size, **config.model.overrides)).to(device)
        self.ema = ErA(self.model.config).to(device).eval()
        self.ema.load_state_dict(self.model.state_dict())
        if config.train.channels_last:
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        groups = list(parameter_groups(self.model, config.train.scalar_rate))
        decay = config.train.weight_decay
        self.fused = True if device.type == "cuda" else None
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, weight_decay=decay, fused=self.fused)
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.train.precision == "fp16")
        self.averages = Averages()
        self.step = 0  # optimiser steps done
        self.skipped = 0  # steps among them that were skipped for a non-finite gradient

    def clip_gradients(self) -> Tensor:
        """Clip; return the gradient's norm before, still on the device."""
        self.scaler.unscale_(self.optimizer)
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        return torch.nn.utils.clip_grad_norm_(
            parameters, self.config.train.clip_norm or float("inf")
        )

    def apply_gradients(self, norm: float) -> None:
        """Step and average, after `clip_gradients` and with the norm that it found.

        With a non-finite norm nothing is changed.
        """
        if math.isfinite(norm) or self.scaler.is_enabled():
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(self.step, self.config.train) * group["rate"]
            self.scaler.step(self.optimizer)
            self.scaler.update()
        if math.isfinite(norm):
            self._average()
        self.optimizer.zero_grad(set_to_none=True)

    def drop_gradients(self) -> float:
        """Skip a step whose loss is not finite; return NaN as its norm."""
        self.optimizer.zero_grad(set_to_none=True)
        return float("nan")

    @torch.no_grad()
    def _average(self) -> None:
        decay = ema_decay(self.step, self.config.train)
        averages: list[Tensor] = list(self.ema.parameters())
        parameters: list[Tensor] = list(self.model.parameters())
        torch._foreach_lerp_(averages, parameters, 1 - decay)

    def weights(self) -> dict[str, Tensor]:
        """The averaged weights under plain names, on the CPU."""
        return {k: v.detach().cpu().contiguous().clone() for k, v in self.ema.state_dict().items()}

    def training(self) -> dict[str, Any]:
        """Everything else that resumption needs; plain values and CPU tensors only."""
        return {
            "model": _copied(self.model.state_dict()),
            "optimizer": _copied(self.optimizer.state_dict()),
            "scaler": self.scaler.state_dict(),
            "averages": {"sums": {**self.averages.sums}, "counts": {**self.averages.counts}},
            "step": self.step,
            "skipped": self.skipped,
            "torch_rng": torch.get_rng_state(),
        }

    def restore(self, weights: dict[str, Tensor], training: dict[str, Any]) -> None:
        """Restore the state from a checkpoint's content.

        Raises:
            UserError: if its network is not the one that this version builds, or a part is missing.
        """
        try:
            self._restore(weights, training)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                "the run's checkpoint holds no training state that this version knows "
                f"({type(error).__name__}: {error}); choose another run.name"
            ) from None

    def _restore(self, weights: dict[str, Tensor], training: dict[str, Any]) -> None:
        try:
            self.ema.load_state_dict(weights)
            self.model.load_state_dict(training["model"])
        except RuntimeError:
            raise UserError(
                "the run's checkpoint holds another network than this version builds; resume with "
                "the version that began it, or choose another run.name"
            ) from None
        saved = training["optimizer"]  # may come from another kind of device
        settings = [  # the configuration's: a trial can take over another one's weights
            {key: group[key] for key in ("fused", "rate", "weight_decay")}
            for group in self.optimizer.param_groups
        ]
        groups = [
            {**group, **own} for group, own in zip(saved["param_groups"], settings, strict=True)
        ]
        self.optimizer.load_state_dict({**saved, "param_groups": groups})
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(training["scaler"])
        self.averages = Averages(**training["averages"])
        self.step, self.skipped = training["step"], training["skipped"]
        torch.set_rng_state(training["torch_rng"])


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, dict):
        return {k: _copied(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_copied(v) for v in value]
    return value
