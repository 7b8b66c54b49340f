"""What a camera does to a pair, effect by effect, each with its own stream of random numbers.

A set made with further effects keeps what the others draw, and one without any keeps its bytes.
Effects on the scene come before the lens, those on light after it, those on pixels last.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import cv2
import numpy as np

from pipeline.arrays import Image
from pipeline.errors import UserError
from pipeline.images import from_float, to_float
from pipeline.synthesize.light import GAMMA
from pipeline.synthesize.photos import Photo
from pipeline.synthesize.psf import Aperture
from pipeline.synthesize.render import Rendered, add_noise, through_lens
from pipeline.synthesize.scene import Scene, Surface

EFFECTS = {
    "highlights": "light up to 12 times full scale, clipped after the lens",
    "outlines": "occluders with outlines of a photograph's bright parts",
    "aperture": "polygons of 5 to 9 blades, cut to cat's eyes in some pictures",
    "resize": "both pictures made up to 1.6 times larger, then shrunk",
    "soft": "both pictures slightly soft, as at small apertures",
    "exposure": "up to 5 % more or less light in the blurred picture",
    "shift": "the blurred picture moved by up to 0.7 pixels and turned by up to 0.05 degrees",
    "noise": "shot and read noise of ISO 100 to 3200 in both pictures, denoised in half of them",
    "tone": "other tone curves: gamma 1.8 to 2.6, more or less contrast",
    "sharpening": "unsharp masking of both pictures in 40 % of the pairs",
    "jpeg": "JPEG of quality 60 to 100 for 70 % of the blurred pictures, twice for some",
}


def parse_effects(text: str) -> frozenset[str]:
    """The effects of a list such as ``noise,jpeg``; ``all``, or empty for none.

    Raises:
        UserError: for an effect that does not exist.
    """
    names = frozenset(name.strip() for name in text.split(",") if name.strip())
    if names == {"all"}:
        return frozenset(EFFECTS)
    if unknown := sorted(names - set(EFFECTS)):
        raise UserError(
            f"--camera {unknown[0][:40]!r}: not an effect; choose from {', '.join(EFFECTS)}, or all"
        )
    return names


@dataclass(frozen=True)
class Camera:
    """The effects of one pair.

    Args:
        effects: their names.
        key: of the pair; with an effect's name it seeds the effect's stream.
    """

    effects: frozenset[str]
    key: str

    def draws(self, effect: str) -> np.random.Generator | None:
        """The stream of an effect, from its start; None if the effect is not asked for."""
        if effect not in self.effects:
            return None
        seed = hashlib.sha256(f"{self.key}/{effect}".encode()).digest()
        return np.random.Generator(np.random.Philox(key=int.from_bytes(seed[:16], "little")))

    def size_of_scene(self, size: tuple[int, int], photos: list[Photo]) -> tuple[int, int]:
        """The scene's (height, width), at least `size` and at most the smallest photograph's."""
        rng = self.draws("resize")
        if rng is None:
            return size
        shapes = np.array([photo.shape for photo in photos])
        factor = min(rng.uniform(1.0, 1.6), float((shapes / np.array(size)).min()))
        return int(size[0] * factor), int(size[1] * factor)

    def photograph(self, scene: Scene, size: tuple[int, int], rng: np.random.Generator) -> Rendered:
        """Take both pictures of a scene.

        Args:
            scene: of `size`, or larger (`size_of_scene`).
            size: (height, width) of the pair.
            rng: of the sensor's noise, as without a camera.
        """
        light = through_lens(self._before_the_lens(scene))
        noisy = add_noise(np.clip(light.blur, 0, 1), scene.gain, rng)
        pair = (noisy, np.clip(light.sharp, 0, 1), light.radius)
        blur, sharp, radius = (x.astype(np.float32) for x in pair)
        if radius.shape != size:
            blur, sharp, radius = (_shrink(x, size) for x in (blur, sharp, radius))
            radius = radius * np.float32(size[0] / light.radius.shape[0])
        blur, sharp, radius = self._on_light(blur, sharp, radius)
        return self._on_pixels(blur, sharp, radius)

    def _before_the_lens(self, scene: Scene) -> Scene:
        surfaces = scene.surfaces
        if (rng := self.draws("highlights")) is not None:
            gain = np.float32(np.exp(rng.uniform(0, 2.5)) - 1)
            surfaces = [replace(s, light=_brightened(s.light, gain)) for s in surfaces]
        if (rng := self.draws("outlines")) is not None:
            level = float(rng.uniform(0.4, 0.8))
            surfaces = [surfaces[0], *(_outlined(s, level) for s in surfaces[1:])]
        if (rng := self.draws("aperture")) is not None:
            # One for each kind of PSF: for the whole scene, unless the kinds are mixed.
            drawn = {kind: _aperture(rng) for kind in dict.fromkeys(s.psf for s in surfaces)}
            surfaces = [replace(s, psf=drawn[s.psf]) for s in surfaces]
        return replace(scene, surfaces=surfaces)

    def _on_light(self, blur: Image, sharp: Image, radius: Image) -> tuple[Image, Image, Image]:
        if (rng := self.draws("soft")) is not None:
            sigma = rng.uniform(0.1, 0.45)
            blur, sharp = _gaussian(blur, sigma), _gaussian(sharp, sigma)
        if (rng := self.draws("exposure")) is not None:
            blur = blur * np.float32(rng.uniform(0.95, 1.05))
        if (rng := self.draws("shift")) is not None:
            move = _motion(rng, radius.shape)
            blur, radius = _moved(blur, move), _moved(radius, move)
        if (rng := self.draws("noise")) is not None:
            gain, sigma = np.exp(rng.uniform(0, np.log(32))), rng.uniform(0.4, 1.0)
            if rng.uniform() < 0.5:
                sigma = 0.0
            blur = np.clip(blur, 0, 1)  # more light (`exposure`) saturates before there is noise
            blur, sharp = (_noisy(x, gain, sigma, rng) for x in (blur, sharp))
        return np.clip(blur, 0, 1), np.clip(sharp, 0, 1), radius

    def _on_pixels(self, blur: Image, sharp: Image, radius: Image) -> Rendered:
        gamma, contrast = GAMMA, 0.0
        if (rng := self.draws("tone")) is not None:
            gamma, contrast = float(rng.uniform(1.8, 2.6)), float(rng.uniform(-0.1, 0.5))
        blur, sharp = (_toned(x, gamma, contrast) for x in (blur, sharp))
        if (rng := self.draws("sharpening")) is not None and rng.uniform() < 0.4:
            amount, sigma = np.float32(rng.uniform(0, 0.8)), rng.uniform(0.6, 1.2)
            blur, sharp = (x + amount * (x - _gaussian(x, sigma)) for x in (blur, sharp))
        blur, sharp = np.clip(blur, 0, 1), np.clip(sharp, 0, 1)
        if (rng := self.draws("jpeg")) is not None and rng.uniform() < 0.7:
            for _ in range(1 + (rng.uniform() < 0.2)):
                blur = _jpeg(blur, int(rng.integers(60, 101)), bool(rng.uniform() < 0.6))
        return Rendered(blur, sharp, radius)


def _aperture(rng: np.random.Generator) -> Aperture:
    blades, turn = int(rng.integers(5, 10)), float(rng.uniform(0, 2 * np.pi))
    return Aperture(blades, turn, float(rng.uniform(0, 0.8)) if rng.uniform() < 0.35 else 0.0)


def _brightened(light: Image, gain: np.float32) -> Image:
    beyond = np.clip((light.max(axis=-1, keepdims=True) - 0.7) / 0.3, 0, 1) ** 2
    return np.asarray(light * (1 + beyond * gain), np.float32)


def _outlined(surface: Surface, level: float) -> Surface:
    """A surface of which only the part brighter than a quantile of it is left."""
    grey = _gaussian(surface.light.mean(axis=-1), 1.0)
    covered = grey[surface.coverage > 0.5]
    if not covered.size:
        return surface
    part = np.clip((grey - np.quantile(covered, level)) * 40 + 0.5, 0, 1).astype(np.float32)
    return replace(surface, coverage=surface.coverage * part)


def _shrink(image: Image, size: tuple[int, int]) -> Image:
    return np.asarray(cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA))


def _gaussian(image: Image, sigma: float) -> Image:
    return np.asarray(cv2.GaussianBlur(image, (0, 0), sigma, borderType=cv2.BORDER_REFLECT))


def _motion(rng: np.random.Generator, size: tuple[int, ...]) -> Image:
    """A turn about the middle and a move, as a matrix (2, 3)."""
    middle = (size[1] / 2, size[0] / 2)
    turn = cv2.getRotationMatrix2D(middle, float(rng.uniform(-0.05, 0.05)), 1.0)
    matrix = np.asarray(turn, np.float64)
    matrix[:, 2] += rng.uniform(-0.7, 0.7, 2)
    return matrix


def _moved(image: Image, matrix: Image) -> Image:
    size, border = image.shape[1::-1], cv2.BORDER_REFLECT
    return np.asarray(cv2.warpAffine(image, matrix, size, borderMode=border))


def _noisy(light: Image, gain: float, sigma: float, rng: np.random.Generator) -> Image:
    noise = add_noise(light, gain, rng) - light
    return np.asarray(light + (_gaussian(noise, sigma) if sigma else noise), np.float32)


def _toned(light: Image, gamma: float, contrast: float) -> Image:
    pixels = light ** np.float32(1 / gamma)
    return np.asarray(pixels + np.float32(contrast) * (pixels**2 * (3 - 2 * pixels) - pixels))


def _jpeg(pixels: Image, quality: int, subsampled: bool) -> Image:
    sampling = (
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420 if subsampled else cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444
    )
    options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, sampling]
    bgr = np.ascontiguousarray(from_float(pixels, np.uint8)[..., ::-1])
    data = cv2.imencode(".jpg", bgr, options)[1]
    decoded = np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR))
    return to_float(np.ascontiguousarray(decoded[..., ::-1]))
