"""What a network costs: parameters and multiply-accumulates, by one call."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from era.config import ErAConfig
from era.model import ErA


class Cost(NamedTuple):
    """`parameters`; multiply-accumulates of convolutions and of FFTs for one image."""

    parameters: int
    convolution_macs: int
    fft_macs: int

    @property
    def macs(self) -> int:
        """All multiply-accumulates."""
        return self.convolution_macs + self.fft_macs


def cost(config: ErAConfig, height: int, width: int) -> Cost:
    """Count what restoring one image of this size takes (eval mode); nothing is computed.

    A real FFT of n points is counted as 5/4 n log2 n multiply-accumulates.
    """
    model = ErA(config).to("meta")
    return Cost(parameter_count(model), *macs_of(model.eval(), height, width))


def parameter_count(model: nn.Module) -> int:
    """The number of learned values."""
    return sum(parameter.numel() for parameter in model.parameters())


class _FftCounter(torch.overrides.TorchFunctionMode):
    macs = 0.0

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        if func in (torch.fft.rfft2, torch.fft.irfft2):
            real: Tensor = args[0] if func is torch.fft.rfft2 else result
            self.macs += 1.25 * real.numel() * math.log2(real.shape[-1] * real.shape[-2])
        return result


def macs_of(model: nn.Module, height: int, width: int) -> tuple[int, int]:
    """Multiply-accumulates of convolutions and of FFTs for one image, of any network."""
    from torch.utils.flop_counter import FlopCounterMode  # imports triton: a second, or more

    image = torch.empty(1, 3, height, width, device=next(model.parameters()).device)
    with FlopCounterMode(display=False) as flops, _FftCounter() as ffts, torch.no_grad():
        model(image)
    return flops.get_total_flops() // 2, round(ffts.macs)
