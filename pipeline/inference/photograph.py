"""Restoring one photograph of any size: as a whole where it fits, else in blended tiles.

The blur is estimated on the whole photograph, so that tiles agree about it; beyond a size, the
estimate is made in overlapping parts. Memory beyond the photograph and its result is bounded by the
tile. A large photograph gets a mirrored frame first, which the network knows to be no part of the
photograph: its FFTs then wrap around far from the border, as a whole or in tiles.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor

from era import ErA, Estimate
from era.estimator import STRIDE
from pipeline import freed_memory
from pipeline.arrays import EMPTY, Image
from pipeline.case import Case
from pipeline.errors import UserError
from pipeline.images import from_float, to_float
from pipeline.inference.memory import MAX_PIXELS
from pipeline.inference.tiles import GRID, OVERLAP, Span, spans, window

ESTIMATE_MARGIN = 256  # pixels around a part, more than the estimate of a place looks around
ROWS = 128  # rows rounded at a time
FRAME = 32  # pixels around a large photograph, at least
FRAMED_FROM = 512 * 512  # pixels; on smaller ones the frame would cost more than the photograph


@torch.inference_mode()
def restore_array(
    model: ErA,
    blur: Image,
    *,
    max_pixels: int = MAX_PIXELS,
    estimate_pixels: int = sys.maxsize,
    maps: bool = True,
    floats: bool = True,
    strength: float = 1.0,
) -> Case:
    """Restore a photograph with a model in eval mode, on the device that the model is on.

    Args:
        blur: (H, W, 3), uint8 or uint16.
        max_pixels: photographs with more pixels are cut into tiles of about that many.
        estimate_pixels: above it, the blur is estimated in parts of that many pixels.
        maps, floats: what the result holds beside the restored pixels.
        strength: in [0, 1], how much of the correction is applied; see `_share`.
    """
    height, width = blur.shape[:2]
    estimate = _estimate(model, blur, estimate_pixels)
    freed_memory.trim(even_if_kept=True)  # the tiles have other sizes
    # Two kernels wide, on the grid: what lies further out does not change the photograph.
    frame = max(FRAME, -(-2 * model.config.kernel_size // GRID) * GRID)
    frame = frame if height * width >= FRAMED_FROM else 0
    work = _Work(model, blur, estimate, frame, strength)
    result = _Result.empty(blur, maps, floats)
    if height * width <= max_pixels:
        result.put(0, *work.whole())
    else:
        work.tiled(max_pixels, result)
    weights = estimate.weights(0, 0, height, width) if maps else None
    return Case(
        pixels=result.restored,
        restored=result.floats,
        kernels=_array(estimate.kernels[0]),
        coarse_radius=_array(model.radius(estimate.coarse)[0, 0]),
        weights=EMPTY if weights is None else _array(weights[0]),
        radius=EMPTY if weights is None else _array(model.radius(weights)[0, 0]),
        error=result.error,
        finite=not result.broken,
    )


def require_finite(case: Case, where: str) -> None:
    """Refuse what a network has restored to values that are not finite.

    Raises:
        UserError: naming the checkpoint, `where`.
    """
    if not case.finite:
        raise UserError(f"{where}: this network's result is not finite; take another checkpoint")


@torch.inference_mode()
def radius_of(model: ErA, blur: Image, estimate_pixels: int = sys.maxsize) -> Image:
    """The estimated blur radius (H/4, W/4) in pixels of a photograph (H, W, 3)."""
    return _array(model.radius(_estimate(model, blur, estimate_pixels).coarse)[0, 0])


def _estimate(model: ErA, blur: Image, max_pixels: int) -> Estimate:
    """The blur of the whole photograph, estimated in overlapping parts where it is larger.

    The maps are local and are put together from the parts; the kernels, which are averages over the
    image, are averaged over the parts, each by how much of the part uses it.
    """
    height, width = blur.shape[:2]
    if height * width <= max_pixels:
        return model.estimate(_tensor(blur, model))
    # Half: in parts of several sizes about twice the memory per pixel was measured.
    side = max(256, (math.isqrt(max_pixels // 2) - 2 * ESTIMATE_MARGIN) // GRID * GRID)
    rows, kernels, uses = [], [], []
    for top in range(0, height, side):
        row = []
        for left in range(0, width, side):
            part = model.estimate(_tensor(_around(blur, top, left, side), model))
            y, x = (min(n, ESTIMATE_MARGIN) // STRIDE for n in (top, left))
            core = (..., slice(y, y + side // STRIDE), slice(x, x + side // STRIDE))
            row.append((part.coarse[core], part.coarse_confidence[core]))
            kernels.append(part.kernels)
            uses.append(row[-1][0].sum(dim=(-2, -1)))
            freed_memory.trim()
        rows.append([torch.cat(maps, dim=-1) for maps in zip(*row, strict=True)])
    coarse, confidence = (torch.cat(maps, dim=-2) for maps in zip(*rows, strict=True))
    share = torch.stack(uses) + 1e-6
    mean = (torch.stack(kernels) * (share / share.sum(dim=0))[..., None, None]).sum(dim=0)
    return Estimate(mean, coarse, confidence)


def _around(blur: Image, top: int, left: int, side: int) -> Image:
    margin = ESTIMATE_MARGIN
    rows = slice(max(0, top - margin), top + side + margin)
    return blur[rows, max(0, left - margin) : left + side + margin]


@dataclass(frozen=True)
class _Result:
    """What is kept of a restored photograph; filled from top to bottom."""

    restored: Image
    floats: Image
    error: Image
    broken: list[int] = field(default_factory=list)  # rows in which a value is not finite

    @classmethod
    def empty(cls, blur: Image, maps: bool, floats: bool) -> _Result:
        kept = [np.empty(blur.shape, np.float32) if asked else EMPTY for asked in (floats, maps)]
        return cls(np.empty_like(blur), floats=kept[0], error=kept[1])

    def put(self, top: int, restored: Image, error: Image) -> None:
        """Keep finished rows (h, W, 3), float32 in [0, 1], and their E."""
        for start in range(0, len(restored), ROWS):  # rounding works on a copy
            rows = restored[start : start + ROWS]
            place = slice(top + start, top + start + len(rows))
            if not np.isfinite(rows).all():
                self.broken.append(top + start)
                rows = np.nan_to_num(rows)
            self.restored[place] = from_float(rows, self.restored.dtype)
        place = slice(top, top + len(restored))
        if self.floats.size:
            self.floats[place] = restored
        if self.error.size:
            self.error[place] = error


@dataclass(frozen=True)
class _Work:
    """A photograph, its estimated blur, the width of its frame and the strength."""

    model: ErA
    blur: Image
    estimate: Estimate
    frame: int
    strength: float

    def whole(self) -> tuple[Image, Image]:
        """The restored photograph and its E, in one piece."""
        rows, columns = (Span(-self.frame, n + self.frame, n) for n in self.blur.shape[:2])
        return self._part(rows, columns)

    def tiled(self, max_pixels: int, result: _Result) -> None:
        """The same in tiles, blended where they overlap; holds one row of tiles at a time."""
        height, width = self.blur.shape[:2]
        side = max(2 * OVERLAP, math.isqrt(max_pixels))
        lines = list(spans(height, self.frame, side))
        ends = [line.within.start for line in lines[1:]] + [height]
        # Share, and times the share: restored and, where it is asked for, E.
        band = np.zeros((0, width, 7 if result.error.size else 4), np.float32)
        for rows, end in zip(lines, ends, strict=True):
            top, bottom = rows.within.start, rows.within.stop
            grown = np.zeros((bottom - top, *band.shape[1:]), np.float32)
            grown[: len(band)] = band
            band = grown
            for columns in spans(width, self.frame, side):
                place = band[:, columns.within]
                restored, error = self._part(rows, columns)
                share = (window(rows)[:, None] * window(columns))[..., None]
                place[..., :1] += share
                place[..., 1:4] += share * restored
                if result.error.size:
                    place[..., 4:] += share * error
            done = band[: end - top]
            done[..., 1:] /= done[..., :1]
            result.put(top, done[..., 1:4], done[..., 4:])
            band = band[end - top :].copy()  # a view would hold the finished rows too
            freed_memory.trim()

    def _part(self, rows: Span, columns: Span) -> tuple[Image, Image]:
        """Restore a place of the framed photograph; returns the part within the photograph."""
        y, x = rows.within, columns.within
        size = y.stop - y.start, x.stop - x.start
        pad = (*columns.outside, *rows.outside)
        weights = self.estimate.weights(y.start, x.start, *size)
        blur = _tensor(self.blur[rows.mirrored()[:, None], columns.mirrored()], self.model)
        confidence = functional.pad(self.estimate.confidence(y.start, x.start, *size), pad)
        output = self.model(
            blur,
            self.estimate,
            functional.pad(weights, pad, mode="replicate") if any(pad) else weights,
            confidence,
        )
        image = output.restored
        if self.strength < 1:
            image = torch.lerp(blur, image, _share(self.strength, confidence))
        restored, error = (
            _array(image[0].permute(1, 2, 0)[rows.own, columns.own])
            for image in (image, output.error)
        )
        return restored, error


def _share(strength: float, confidence: Tensor) -> Tensor:
    """The share of the correction: `strength` where the estimate of the blur is certain, its square
    where it is not."""
    return strength ** (2 - confidence)


def _tensor(image: Image, model: ErA) -> Tensor:
    device = next(model.parameters()).device
    return torch.from_numpy(to_float(image)).permute(2, 0, 1)[None].to(device)


def _array(tensor: Tensor) -> Image:
    return tensor.float().cpu().numpy()
