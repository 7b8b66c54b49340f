"""Plain networks to compare with: no blur model, no unrolling. Images (B, 3, H, W) in [0, 1]."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from era.resunet import pad_to


class NafBlock(nn.Module):
    """A block in the manner of NAFNet (Chen et al., ECCV 2022): gates instead of activations."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(1, channels), nn.GroupNorm(1, channels)
        self.expand = nn.Conv2d(channels, 2 * channels, 1)
        self.depthwise = nn.Conv2d(2 * channels, 2 * channels, 3, padding=1, groups=2 * channels)
        self.attend = nn.Conv2d(channels, channels, 1)
        self.project = nn.Conv2d(channels, channels, 1)
        self.widen = nn.Conv2d(channels, 2 * channels, 1)
        self.narrow = nn.Conv2d(channels, channels, 1)
        self.beta = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.gamma = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        a, b = self.depthwise(self.expand(self.norm1(x))).chunk(2, dim=1)
        y = a * b
        y = self.project(y * self.attend(y.mean(dim=(-2, -1), keepdim=True)))
        x = x + self.beta * y
        a, b = self.widen(self.norm2(x)).chunk(2, dim=1)
        return x + self.gamma * self.narrow(a * b)


class NafNet(nn.Module):
    """A small NAFNet-style U-Net of width `width`, one block a level, two in the middle."""

    def __init__(self, width: int = 16, levels: int = 3) -> None:
        super().__init__()
        self.multiple = 2 ** (levels - 1)
        widths = [width * 2**level for level in range(levels)]
        pairs = list(itertools.pairwise(widths))
        self.head = nn.Conv2d(3, width, 3, padding=1)
        self.encoders = nn.ModuleList(NafBlock(c) for c in widths[:-1])
        self.downs = nn.ModuleList(nn.Conv2d(a, b, 2, stride=2) for a, b in pairs)
        self.body = nn.Sequential(NafBlock(widths[-1]), NafBlock(widths[-1]))
        self.ups = nn.ModuleList(
            nn.Sequential(nn.Conv2d(b, 4 * a, 1, bias=False), nn.PixelShuffle(2))
            for a, b in reversed(pairs)
        )
        self.decoders = nn.ModuleList(NafBlock(c) for c in reversed(widths[:-1]))
        self.tail = nn.Conv2d(width, 3, 3, padding=1)
        nn.init.zeros_(self.tail.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 3, H, W), any H and W."""
        y, skips = self.head(pad_to(x, self.multiple)), []
        for encoder, down in zip(self.encoders, self.downs, strict=True):
            y = encoder(y)
            skips.append(y)
            y = down(y)
        y = self.body(y)
        for up, decoder in zip(self.ups, self.decoders, strict=True):
            y = decoder(up(y) + skips.pop())
        return x + self.tail(y)[..., : x.shape[-2], : x.shape[-1]]
