"""A plain U-Net: the alternative for D_phi, and a baseline by itself (benchmarks/quality.py).

Two convolutions per level, skip connections concatenated. It costs more than `era.resunet` at equal
widths and is the better prior for a CPU's budget.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from era.resunet import SLOPE, initialise, pad_to


class UNet(nn.Module):
    """A plain U-Net: two 3x3 convolutions per level, the image added to the output.

    Args:
        channels: per level, finest first.
        inputs: channels of the input, of which the first three are the image.
    """

    def __init__(self, channels: Sequence[int] = (16, 32, 64), inputs: int = 3) -> None:
        super().__init__()
        pairs = list(itertools.pairwise(channels))
        self.multiple = 2 ** (len(channels) - 1)
        self.head = nn.Conv2d(inputs, channels[0], 3, padding=1)
        self.encoders = nn.ModuleList(_two(c, c) for c in channels)
        self.downs = nn.ModuleList(nn.Conv2d(a, b, 2, stride=2) for a, b in pairs)
        self.ups = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, stride=2) for a, b in reversed(pairs))
        self.decoders = nn.ModuleList(_two(2 * a, a) for a, _ in reversed(pairs))
        self.tail = nn.Conv2d(channels[0], 3, 3, padding=1)
        initialise(self)
        nn.init.zeros_(self.tail.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, 3, H, W), any H and W."""
        padded = pad_to(x, self.multiple)
        y, skips = self.head(padded), []
        for encoder, down in zip(self.encoders[:-1], self.downs, strict=True):
            y = encoder(y)
            skips.append(y)
            y = down(y)
        y = self.encoders[-1](y)
        for up, decoder in zip(self.ups, self.decoders, strict=True):
            y = decoder(torch.cat([up(y), skips.pop()], dim=1))
        return x[:, :3] + self.tail(y)[..., : x.shape[-2], : x.shape[-1]]


def _two(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1),
        nn.LeakyReLU(SLOPE),
        nn.Conv2d(outputs, outputs, 3, padding=1),
        nn.LeakyReLU(SLOPE),
    )
