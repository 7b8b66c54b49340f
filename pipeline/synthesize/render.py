"""Rendering a scene through the lens: sharp, blurred, and the true radius.

Each surface is cut into slices of signed radius that are painted from far to near. A slice includes
everything nearer on its surface, with premultiplied coverage, so that nothing leaks through the
seams between slices. Surfaces are then composited, premultiplied too, so that a blurred edge lets
the background through as a real lens does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.arrays import Image
from pipeline.synthesize.light import to_pixels
from pipeline.synthesize.psf import psf
from pipeline.synthesize.scene import Scene, Surface

STEP = 0.5  # pixels of radius between slices; coverage is interpolated linearly
READ_NOISE = 1e-4  # standard deviation, of full scale
FULL_WELL = 50_000.0  # electrons at full scale


@dataclass(frozen=True)
class Light:
    """What reaches the sensor: linear light (H, W, 3), blurred and sharp, and the radius (H, W)."""

    blur: Image
    sharp: Image
    radius: Image


@dataclass(frozen=True)
class Rendered:
    """A pair: sRGB-like (H, W, 3) float in [0, 1], and the true radius (H, W) in pixels."""

    blur: Image
    sharp: Image
    radius: Image


def render(scene: Scene, rng: np.random.Generator) -> Rendered:
    """Render a scene; noise is added to the blurred image only."""
    light = through_lens(scene)
    noisy = add_noise(np.clip(light.blur, 0, 1), scene.gain, rng)
    return Rendered(to_pixels(noisy), to_pixels(light.sharp), light.radius)


def through_lens(scene: Scene) -> Light:
    """The light of a scene after the lens, and that of the same scene without defocus."""
    blur = np.zeros_like(scene.surfaces[0].light)
    sharp = np.zeros_like(blur)
    radius = np.zeros(blur.shape[:2], np.float32)
    for surface in scene.surfaces:
        light, coverage = _blurred(surface)
        blur = light + (1 - coverage[..., None]) * blur
        alpha = surface.coverage[..., None]
        sharp = alpha * surface.light + (1 - alpha) * sharp
        radius = np.where(surface.coverage > 0.5, np.abs(surface.radius), radius)
    return Light(blur, sharp, radius)


def _blurred(surface: Surface) -> tuple[Image, Image]:
    """Premultiplied light (H, W, 3) and coverage (H, W) of a surface after the lens."""
    light = np.zeros_like(surface.light)
    coverage = np.zeros(light.shape[:2], np.float32)
    top = int(np.ceil(float(surface.radius.max()) / STEP))
    bottom = int(np.floor(float(surface.radius.min()) / STEP))
    for level in range(top, bottom - 1, -1):  # signed radius falls: from far to near
        nearer = np.ones_like(coverage)
        if level < top:
            nearer = np.clip(level + 1 - surface.radius / STEP, 0, 1)
        alpha = surface.coverage * nearer
        kernel = psf(surface.psf, abs(level) * STEP, before_focus=level < 0)
        slice_light = _filter(surface.light * alpha[..., None], kernel)
        slice_coverage = _filter(alpha, kernel)
        # Within a surface, the farther slice shows wherever this one does not cover.
        share = _filter(nearer, kernel)
        light = slice_light + (1 - share[..., None]) * light
        coverage = slice_coverage + (1 - share) * coverage
    return light, coverage


def _filter(image: Image, kernel: Image) -> Image:
    import cv2

    return np.asarray(cv2.filter2D(image, -1, kernel, borderType=cv2.BORDER_REFLECT))


def add_noise(light: Image, gain: float, rng: np.random.Generator) -> Image:
    """Shot noise, whose variance grows with the light, and read noise, in linear light."""
    deviation = np.sqrt((gain * READ_NOISE) ** 2 + light * gain / FULL_WELL)
    noise = rng.standard_normal(light.shape, dtype=np.float32)
    return np.clip(light + deviation * noise, 0, 1)
