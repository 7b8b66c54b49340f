"""The padded canvas: photographs are not periodic, FFTs are.

The photograph lies in the middle of a larger circular canvas, and M (zero outside the
photograph) weights the data term, so that nothing is claimed about what lies outside and borders do
not ring. The margin is at least kernel_size - 1 in all; sides have small prime factors.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Canvas:
    """Where a photograph of `height` x `width` pixels lies on a canvas of `size`."""

    height: int
    width: int
    size: tuple[int, int]
    top: int
    left: int

    @staticmethod
    def around(height: int, width: int, margin: int, multiple: int) -> Canvas:
        """Return the smallest fast canvas with `margin` extra pixels and sides of `multiple`.

        The photograph starts at a multiple too, so that a tile whose place in the photograph is a
        multiple meets the strides of the networks as it would in the whole.
        """
        size = (fast_size(height + margin, multiple), fast_size(width + margin, multiple))
        top, left = (
            (s - n) // 2 // multiple * multiple for s, n in zip(size, (height, width), strict=True)
        )
        return Canvas(height, width, size, top, left)

    def extend(self, image: Tensor) -> Tensor:
        """Lay (B, C, height, width) on the canvas, mirrored over its borders (any size)."""
        rows = _mirror(self.height, self.top, self.size[0], image.device)
        columns = _mirror(self.width, self.left, self.size[1], image.device)
        return image[..., rows, :][..., columns]

    def extend_edge(self, image: Tensor) -> Tensor:
        """Lay (B, C, height, width) on the canvas, its border values repeated."""
        below = self.size[0] - self.height - self.top
        right = self.size[1] - self.width - self.left
        return F.pad(image, (self.left, right, self.top, below), mode="replicate")

    def crop(self, image: Tensor) -> Tensor:
        """Cut the photograph's place (B, C, height, width) out of the canvas."""
        return image[..., self.top : self.top + self.height, self.left : self.left + self.width]

    def zero_pad(self, image: Tensor) -> Tensor:
        """Lay (B, C, height, width) on the canvas, zero around it: M, from the confidence."""
        below = self.size[0] - self.height - self.top
        right = self.size[1] - self.width - self.left
        return F.pad(image, (self.left, right, self.top, below))


def fast_size(least: int, multiple: int = 1) -> int:
    """Return the smallest n >= `least` that `multiple` divides and whose primes are 2, 3, 5."""
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
