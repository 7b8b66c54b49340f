"""Restoring one photograph of any size: whole where it fits, else in blended tiles.

The blur is estimated once on the whole photograph, so that tiles agree about it. Memory beyond the
photograph itself is bounded by the tile. A large photograph is laid into a mirrored frame first, of
which the network knows that it is none of the photograph: FFTs close far from the border then,
whole or in tiles.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor

from era import ErA, ErAConfig, Estimate
from pipeline.errors import UserError
from pipeline.images import from_float, to_float

Image = np.ndarray[Any, Any]
MAX_PIXELS = 2 * 1024 * 1024  # more is cut into tiles
GRID = 16  # pixels; the strides of every size of network divide it
OVERLAP = 128  # pixels, blended; more than the priors look around
FRAME = 32  # pixels around a large photograph, at least
FRAMED_FROM = 512 * 512  # pixels; below, the frame would cost more than the photograph


@dataclass(frozen=True)
class Restoration:
    """A restored photograph and what the network said about its blur.

    Attributes:
        restored: (H, W, 3) of the input's type.
        restored_float: (H, W, 3) float32 in [0, 1], not requantised.
        kernels: (K, k, k). coarse_radius: (H/4, W/4), pixels.
        weights: (K, H, W), summing to 1. radius: (H, W), pixels. error: E (H, W, 3). These three
            are empty unless maps were asked for.
    """

    restored: Image
    restored_float: Image
    kernels: Image
    coarse_radius: Image
    weights: Image
    radius: Image
    error: Image


@torch.inference_mode()
def restore_array(
    model: ErA,
    blur: Image,
    *,
    max_pixels: int = MAX_PIXELS,
    maps: bool = True,
    device: str = "cpu",
) -> Restoration:
    """Restore a photograph (H, W, 3), uint8 or uint16, with a model in eval mode."""
    height, width = blur.shape[:2]
    estimate = model.estimate(_tensor(blur, device))
    # Two kernels wide, on the grid: what lies beyond changes the photograph no more.
    frame = max(FRAME, -(-2 * model.config.kernel_size // GRID) * GRID)
    frame = frame if height * width >= FRAMED_FROM else 0
    work = _Work(model, blur, estimate, frame, device)
    if height * width <= max_pixels:
        restored, error = work.whole()
    else:
        restored, error = work.tiled(max_pixels, maps)
    nothing = np.zeros((0, 0, 0), np.float32)
    weights = estimate.weights(0, 0, height, width) if maps else None
    return Restoration(
        restored=from_float(restored, blur.dtype),
        restored_float=restored,
        kernels=_array(estimate.kernels[0]),
        coarse_radius=_array(model.radius(estimate.coarse)[0, 0]),
        weights=nothing if weights is None else _array(weights[0]),
        radius=nothing if weights is None else _array(model.radius(weights)[0, 0]),
        error=error if maps else nothing,
    )


def pixels_for(config: ErAConfig, memory_gb: float) -> int:
    """The largest number of pixels that the network may work on at once in so much memory.

    Counted are copies of the weights and spectra for each kernel, features of the prior's finest
    level, and the solver's own: 808 bytes per pixel for size tiny, whose peaks were 690 and 630 at
    1 and 1.6 megapixels.

    Raises:
        UserError: for a memory that is no positive number.
    """
    if not 0 < memory_gb < math.inf:
        raise UserError(f"--memory {memory_gb}: expected a number of GB above 0")
    per_pixel = 4 * (4 * config.kernels + 5 * config.prior_channels[0] + 90)
    return max((2 * OVERLAP) ** 2, int(memory_gb * 1e9 / per_pixel))


@dataclass(frozen=True)
class _Span:
    """A stretch of a line of `length` pixels; it may begin before the line and end after it."""

    start: int
    end: int
    length: int

    @property
    def size(self) -> int:
        """Pixels, those outside included."""
        return self.end - self.start

    @property
    def within(self) -> slice:
        """Its part of the line."""
        return slice(max(0, self.start), min(self.length, self.end))

    @property
    def own(self) -> slice:
        """The same part, counted from its own start."""
        return slice(self.within.start - self.start, self.within.stop - self.start)

    @property
    def outside(self) -> tuple[int, int]:
        """Pixels before and after the line."""
        return self.own.start, self.size - self.own.stop

    def mirrored(self) -> Image:
        """Indices of its pixels, the line mirrored over its ends."""
        position = np.arange(self.start, self.end) % (2 * self.length)
        return np.minimum(position, 2 * self.length - 1 - position)


@dataclass(frozen=True)
class _Work:
    """A photograph, its blur and the width of its frame."""

    model: ErA
    blur: Image
    estimate: Estimate
    frame: int
    device: str

    def whole(self) -> tuple[Image, Image]:
        """The restored photograph and its E, at once."""
        rows, columns = (_Span(-self.frame, n + self.frame, n) for n in self.blur.shape[:2])
        return self._part(rows, columns)

    def tiled(self, max_pixels: int, maps: bool) -> tuple[Image, Image]:
        """The same in tiles, which are blended where they overlap."""
        height, width = self.blur.shape[:2]
        restored = np.zeros(self.blur.shape, np.float32)
        error = np.zeros(self.blur.shape if maps else (0, 0, 0), np.float32)
        shares = np.zeros((height, width, 1), np.float32)
        side = max(2 * OVERLAP, math.isqrt(max_pixels))
        for rows in _spans(height, self.frame, side):
            for columns in _spans(width, self.frame, side):
                place = rows.within, columns.within
                tiles = self._part(rows, columns)
                share = (_window(rows)[:, None] * _window(columns))[..., None]
                restored[place] += share * tiles[0]
                shares[place] += share
                if maps:
                    error[place] += share * tiles[1]
        np.divide(restored, shares, out=restored)
        if maps:
            np.divide(error, shares, out=error)
        return restored, error

    def _part(self, rows: _Span, columns: _Span) -> tuple[Image, Image]:
        """Restore a place; returned is what of it lies in the photograph."""
        y, x = rows.within, columns.within
        size = y.stop - y.start, x.stop - x.start
        pad = (*columns.outside, *rows.outside)
        weights = self.estimate.weights(y.start, x.start, *size)
        output = self.model(
            _tensor(self.blur[rows.mirrored()[:, None], columns.mirrored()], self.device),
            self.estimate,
            functional.pad(weights, pad, mode="replicate") if any(pad) else weights,
            functional.pad(self.estimate.confidence(y.start, x.start, *size), pad),
        )
        restored, error = (
            _array(image[0].permute(1, 2, 0)[rows.own, columns.own])
            for image in (output.restored, output.error)
        )
        return restored, error


def _spans(length: int, frame: int, side: int) -> Iterator[_Span]:
    """Overlapping spans of about `side` pixels that cover a framed line, starting on the grid."""
    total = length + 2 * frame
    if total <= side:
        yield _Span(-frame, length + frame, length)
        return
    count = -(-(total - OVERLAP) // (side - OVERLAP))
    # No larger than so many must be: pixels that are worked on twice are the price of tiles.
    side = min(side, -(-(total + (count - 1) * OVERLAP) // count // GRID) * GRID + GRID)
    starts = [index * (total - side) // (count - 1) // GRID * GRID for index in range(count)]
    for index, start in enumerate(starts):
        end = length + frame if index == count - 1 else start - frame + side
        yield _Span(start - frame, end, length)


def _window(span: _Span) -> Image:
    """A raised cosine over the overlap at both ends, 1 between, never 0; within the line."""
    ramp = np.arange(span.size, dtype=np.float32) + 0.5
    edge = np.minimum(ramp, ramp[::-1]) / OVERLAP
    window = 0.5 - 0.5 * np.cos(np.pi * np.minimum(edge, 1.0)) + 1e-4
    return np.asarray(window[span.own], np.float32)


def _tensor(image: Image, device: str) -> Tensor:
    return torch.from_numpy(to_float(image)).permute(2, 0, 1)[None].to(device)


def _array(tensor: Tensor) -> Image:
    return tensor.float().cpu().numpy()
