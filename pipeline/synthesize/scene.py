"""Scenes: surfaces of a photograph, each with an inverse depth, seen through a thin lens.

A thin lens focused at distance s blurs a point at distance d into a disk of diameter
(f^2 / N) |d - s| / (d (s - f)): linear in the inverse depth q = 1/d. The signed radius in pixels is
therefore c = K (q_focus - q): positive behind the focus, negative before it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.arrays import Image
from pipeline.synthesize.photos import Photo
from pipeline.synthesize.psf import KINDS, Aperture

FIELDS = ("plane", "ramp", "smooth", "real")
LEAST_BLUR = 0.45  # the least fraction of the greatest radius that a scene uses


@dataclass(frozen=True)
class Surface:
    """An opaque surface: linear light (H, W, 3), coverage (H, W), signed radius (H, W) in pixels,
    and the kind of its point spread function."""

    light: Image
    coverage: Image
    radius: Image
    psf: str | Aperture


@dataclass(frozen=True)
class Scene:
    """Surfaces from far to near, and the sensor."""

    surfaces: list[Surface]
    gain: float  # of the sensor: scales the noise; 1 is about ISO 100 on a large sensor


def draw_scene(
    rng: np.random.Generator,
    photos: list[Photo],
    size: tuple[int, int],
    radius_max: float,
    mixed_psf: bool = False,
) -> Scene:
    """Draw a scene of `size` (height, width) from photographs; blur of at most `radius_max`.

    Cut-outs are seen through the same lens, each nearer than everything it covers. `mixed_psf`:
    every surface has another kind of point spread function (compound defocus), and at least one
    cut-out is in front.
    """
    crop = _crop(rng, photos[rng.integers(len(photos))], size)
    kind = FIELDS[rng.integers(len(FIELDS))]
    depth = crop.inverse_depth if kind == "real" else None
    q = _stretch(depth) if depth is not None else _field(rng, kind, size)
    focus, strength = rng.uniform(0.0, 1.0), radius_max * rng.uniform(LEAST_BLUR, 1.0)
    if kind == "plane":
        focus = rng.choice([0.0, 1.0])
    scale = strength / max(float(np.abs(focus - q).max()), 1e-6)
    layers: list[tuple[Image, Image, Image]] = [
        (crop.light, np.ones(size, np.float32), scale * (focus - q))
    ]
    limit = focus + radius_max / scale  # nearer than this the blur would exceed radius_max
    for _ in range(rng.integers(int(mixed_psf), 3)):
        light, coverage = _cut_out(rng, photos, size)
        covered = float(np.max(q, where=coverage > 0, initial=float(q.min())))
        near = rng.uniform(covered, max(covered, limit))
        q = np.where(coverage > 0.5, np.float32(near), q)
        radius = np.full(size, scale * (focus - near), np.float32)
        layers.append((light, coverage, radius))
    first = int(rng.integers(len(KINDS)))
    kinds = [KINDS[(first + mixed_psf * n) % len(KINDS)] for n in range(len(layers))]
    surfaces = [Surface(*layer, kind) for layer, kind in zip(layers, kinds, strict=True)]
    return Scene(surfaces, float(rng.uniform(0.5, 2.0)))


def _field(rng: np.random.Generator, kind: str, size: tuple[int, int]) -> Image:
    """An inverse depth (H, W) in [0, 1]: constant, a tilted plane, or smooth hills."""
    height, width = size
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    if kind == "plane":
        return np.full(size, rng.uniform(0.2, 0.8), np.float32)
    angle = rng.uniform(0, 2 * np.pi)
    ramp = np.cos(angle) * x / width + np.sin(angle) * y / height
    if kind == "ramp":
        return _stretch(ramp)
    waves = sum(
        rng.normal() * np.sin(2 * np.pi * (fx * x / width + fy * y / height) + rng.uniform(0, 6.3))
        for fx, fy in rng.uniform(-1.2, 1.2, (4, 2))
    )
    return _stretch(np.asarray(waves) + ramp)


def _cut_out(
    rng: np.random.Generator, photos: list[Photo], size: tuple[int, int]
) -> tuple[Image, Image]:
    """Light and coverage of a blob cut from another photograph: an occluding edge."""
    crop = _crop(rng, photos[rng.integers(len(photos))], size)
    height, width = size
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    cy, cx = rng.uniform(0, height), rng.uniform(0, width)
    angle = np.arctan2(y - cy, x - cx)
    mean = rng.uniform(0.12, 0.3) * min(size)
    wobble = sum(rng.normal() * np.cos(n * angle + rng.uniform(0, 6.3)) / n for n in range(2, 6))
    edge = mean * (1 + 0.25 * np.asarray(wobble))
    coverage = np.clip(edge - np.hypot(y - cy, x - cx) + 0.5, 0, 1).astype(np.float32)
    return crop.light, coverage


@dataclass(frozen=True)
class _Crop:
    light: Image
    inverse_depth: Image | None


def _crop(rng: np.random.Generator, photo: Photo, size: tuple[int, int]) -> _Crop:
    """A random crop of a photograph at a random scale, randomly mirrored."""
    import cv2

    height, width = size
    least = max(height / photo.shape[0], width / photo.shape[1])
    zoom = rng.uniform(least, 1.0)
    shape = max(width, round(photo.shape[1] * zoom)), max(height, round(photo.shape[0] * zoom))
    light = cv2.resize(photo.light, shape, interpolation=cv2.INTER_AREA)
    top = rng.integers(light.shape[0] - height + 1)
    left = rng.integers(light.shape[1] - width + 1)
    mirror = slice(None, None, -1) if rng.integers(2) else slice(None)
    place = (slice(top, top + height), slice(left, left + width))
    depth = None
    if photo.inverse_depth is not None:
        resized = cv2.resize(photo.inverse_depth, shape, interpolation=cv2.INTER_AREA)
        depth = resized[place][:, mirror]
    return _Crop(np.ascontiguousarray(light[place][:, mirror]), depth)


def _stretch(field: Image) -> Image:
    low, high = float(field.min()), float(field.max())
    return ((field - low) / max(high - low, 1e-6)).astype(np.float32)
