"""The padded canvas: photographs are not periodic, FFTs are.

The photograph is placed in the middle of a larger circular canvas. M, zero outside the photograph,
masks the margin out of the data term, so that borders do not ring. The margins of opposite sides
add up to at least kernel_size - 1; the canvas's sides have small prime factors.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Canvas:
    """The place of a photograph of `height` x `width` pixels on a canvas of `size`."""

    height: int
    width: int
    size: tuple[int, int]
    top: int
    left: int

    @staticmethod
    def around(height: int, width: int, margin: int, multiple: int) -> Canvas:
        """Return the smallest fast canvas with `margin` extra pixels and sides of `multiple`.

        The photograph's offset is a multiple, too: a tile whose position is a multiple is then
        aligned with the networks' strides exactly as the whole photograph is.
        """
        size = (fast_size(height + margin, multiple), fast_size(width + margin, multiple))
        top, left = (
            (s - n) // 2 // multiple * multiple for s, n in zip(size, (height, width), strict=True)
        )
        return Canvas(height, width, size, top, left)

    def extend(self, image: Tensor) -> Tensor:
        """Place (B, C, height, width) on the canvas, mirrored at its borders (any size)."""
        rows = _mirror(self.height, self.top, self.size[0], image.device)
        columns = _mirror(self.width, self.left, self.size[1], image.device)
        return image[..., rows, :][..., columns]

    def extend_edge(self, image: Tensor) -> Tensor:
        """Place (B, C, height, width) on the canvas, its border values repeated."""
        below = self.size[0] - self.height - self.top
        right = self.size[1] - self.width - self.left
        return F.pad(image, (self.left, right, self.top, below), mode="replicate")

    def crop(self, image: Tensor) -> Tensor:
        """Crop the canvas to the photograph: (B, C, height, width)."""
        return image[..., self.top : self.top + self.height, self.left : self.left + self.width]

    def zero_pad(self, image: Tensor) -> Tensor:
        """Place (B, C, height, width) on the canvas, zero elsewhere: makes M of the confidence."""
        below = self.size[0] - self.height - self.top
        right = self.size[1] - self.width - self.left
        return F.pad(image, (self.left, right, self.top, below))


def fast_size(least: int, multiple: int = 1) -> int:
    """The smallest multiple of `multiple` from `least` on with no prime factors but 2, 3 and 5."""
    size = -(-least // multiple) * multiple
    while _without_small_primes(size) != 1:
        size += multiple
    return size


def _without_small_primes(number: int) -> int:
    for prime in (2, 3, 5):
        while number % prime == 0:
            number //= prime
    return number


def _mirror(length: int, before: int, total: int, device: torch.device) -> Tensor:
    position = torch.arange(-before, total - before, device=device) % (2 * length)
    return torch.minimum(position, 2 * length - 1 - position)
