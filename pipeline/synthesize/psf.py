"""Point spread functions of a defocused lens, as kernels for any radius in pixels."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from pipeline.arrays import Image

KINDS = ("disk", "rim", "gaussian")
OVERSAMPLING = 8


class Aperture(NamedTuple):
    """A polygon with sides bent half way to its circle, and what a lens's barrel cuts off it.

    `turn` in radians; `eye` is the distance, in radii, of the barrel's disk: 0 leaves all.
    """

    blades: int
    turn: float
    eye: float


@lru_cache(maxsize=4096)
def psf(kind: str | Aperture, radius: float, before_focus: bool = False) -> Image:
    """A kernel (k, k), float32, summing to 1, for a blur of `radius` pixels.

    An `Aperture` is upside down before the focus; the other kinds are symmetric.

    ``disk``: a circular aperture. ``rim``: a disk times a Butterworth high-pass, the bright rim of
    real lenses (Abuolaim et al., ICCV 2021). ``gaussian``: standard deviation radius / 2.
    """
    size = 2 * int(np.ceil(radius * (1.5 if kind == "gaussian" else 1.0) + 0.5)) + 1
    if radius < 0.25:
        return _delta(size)
    offsets = (np.arange(size * OVERSAMPLING) + 0.5) / OVERSAMPLING - size / 2
    if isinstance(kind, Aperture):
        fine = _polygon(kind, (-offsets if before_focus else offsets) / radius)
    else:
        fine = _profile(kind, np.hypot(offsets[:, None], offsets[None, :]) / radius)
    kernel = fine.reshape(size, OVERSAMPLING, size, OVERSAMPLING).sum(axis=(1, 3))
    return (kernel / kernel.sum()).astype(np.float32)


def _profile(kind: str, distance: Image) -> Image:
    """Brightness by distance from the centre in radii."""
    if kind == "gaussian":
        return np.asarray(np.exp(-2 * distance**2))
    inside = (distance <= 1).astype(np.float64)
    if kind == "disk":
        return inside
    high_pass = 1 / (1 + (0.85 / np.maximum(distance, 1e-6)) ** 6)
    return np.asarray(inside * (0.4 + 0.6 * high_pass))


def _polygon(aperture: Aperture, offsets: Image) -> Image:
    """Brightness over a square grid of offsets in radii."""
    y, x = offsets[:, None], offsets[None, :]
    sector = 2 * np.pi / aperture.blades
    angle = (np.arctan2(y, x) + aperture.turn) % sector - sector / 2
    edge = 0.5 * (1 + np.cos(sector / 2) / np.cos(angle))
    dy, dx = aperture.eye * np.sin(aperture.turn), aperture.eye * np.cos(aperture.turn)
    inside = (np.hypot(y, x) <= edge) & (np.hypot(y - dy, x - dx) <= 1)
    return np.asarray(inside, np.float64)


def _delta(size: int) -> Image:
    kernel = np.zeros((size, size), np.float32)
    kernel[size // 2, size // 2] = 1
    return kernel
