"""The learned proximal operators D_phi and D_f: residual U-Nets of the USRNet type.

Residual blocks on every level, 2x2 strided convolutions down, 2x2 transposed convolutions up, skip
connections added. The kernel estimator uses the same network with smooth upsampling. Nothing is
pooled over the image, so crops and whole photographs are treated alike. The last convolution is
initialised to zero, so the network starts as the identity.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

SLOPE = 0.1  # of the leaky ReLUs


class ResBlock(nn.Module):
    """x + conv(act(conv(x))), 3x3, the channel count kept."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return x + self.conv2(F.leaky_relu(self.conv1(x), SLOPE, inplace=True))


class ResUNet(nn.Module):
    """A residual U-Net from `inputs` to `outputs` channels.

    Args:
        channels: per level, finest first; the sides of an input must divide by 2^(levels - 1)
            (`multiple`), else it is padded by repeating its border.
        blocks: residual blocks per level and direction.
        residual: add the (first `outputs` channels of the) input to the output.
        smooth: upsample by a 1x1 convolution and bilinear interpolation instead. The four phases of
            a transposed convolution leave a checkerboard pattern, unwanted in a map of the blur.
    """

    multiple: int

    def __init__(
        self,
        inputs: int,
        outputs: int,
        channels: Sequence[int],
        blocks: int,
        residual: bool = True,
        smooth: bool = False,
    ) -> None:
        super().__init__()
        self.residual = residual
        self.multiple = 2 ** (len(channels) - 1)
        pairs = list(itertools.pairwise(channels))
        self.head = nn.Conv2d(inputs, channels[0], 3, padding=1)
        self.encoders = nn.ModuleList(_stack(c, blocks) for c in channels[:-1])
        self.downs = nn.ModuleList(nn.Conv2d(a, b, 2, stride=2) for a, b in pairs)
        self.body = _stack(channels[-1], blocks)
        self.ups = nn.ModuleList(_up(b, a, smooth) for a, b in reversed(pairs))
        self.decoders = nn.ModuleList(_stack(c, blocks) for c in reversed(channels[:-1]))
        self.tail = nn.Conv2d(channels[0], outputs, 3, padding=1)
        initialise(self)
        nn.init.zeros_(self.tail.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H, W), any H and W."""
        height, width = x.shape[-2:]
        y = self.tail(self._levels(self.head(pad_to(x, self.multiple))))[..., :height, :width]
        return x[:, : y.shape[1]] + y if self.residual else y

    def _levels(self, y: Tensor) -> Tensor:
        skips = []
        for encoder, down in zip(self.encoders, self.downs, strict=True):
            y = encoder(y)
            skips.append(y)
            y = down(y)
        y = self.body(y)
        for up, decoder in zip(self.ups, self.decoders, strict=True):
            y = decoder(up(y) + skips.pop())
        return y


def pad_to(x: Tensor, multiple: int) -> Tensor:
    """Repeat the border until both sides are multiples of `multiple`."""
    below, right = -x.shape[-2] % multiple, -x.shape[-1] % multiple
    return F.pad(x, (0, right, 0, below), mode="replicate") if below or right else x


def initialise(module: nn.Module) -> None:
    """Kaiming initialisation for leaky ReLUs, zero biases, damped residual branches."""
    for part in module.modules():
        if isinstance(part, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.kaiming_normal_(part.weight, a=SLOPE)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
    for part in module.modules():
        if isinstance(part, ResBlock):
            part.conv2.weight.data.mul_(0.5)


def _up(inputs: int, outputs: int, smooth: bool) -> nn.Module:
    if not smooth:
        return nn.ConvTranspose2d(inputs, outputs, 2, stride=2)
    # The two commute; in this order the convolution sees a quarter of the pixels.
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 1),
        nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
    )


def _stack(channels: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(*(ResBlock(channels) for _ in range(blocks)))
