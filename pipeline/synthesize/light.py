"""Pixels and linear light: blur is a sum of light, and so is the noise of a sensor."""

from __future__ import annotations

import numpy as np

from pipeline.arrays import Image

GAMMA = 2.2


def to_linear(pixels: Image) -> Image:
    """Pixels in [0, 1] to linear light in [0, 1], float32."""
    return np.asarray(pixels ** np.float32(GAMMA), np.float32)


def to_pixels(light: Image) -> Image:
    """Linear light to pixels in [0, 1], clamped, float32."""
    return np.asarray(np.clip(light, 0, 1) ** np.float32(1 / GAMMA), np.float32)
