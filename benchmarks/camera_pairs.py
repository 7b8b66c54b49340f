"""Pairs like a camera's, made while a network learns: scenes, lens, sensor and JPEG, on any device.

A batch is a function of (seed, step) on one kind of device. A scene is a photograph's window with a
slanted or hilly depth and up to three occluders with outlines of their own; it is seen through a
thin lens (see `pipeline.synthesize.scene`), in linear light with highlights beyond full scale. Both
pictures share softness, tone curve and sharpening; noise and JPEG are the blurred one's alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

LEVELS = 10  # slices of the background's depth
OCCLUDERS = 3
SUB = 4  # sub-pixels per pixel and axis when a PSF is drawn
DISK, RIM, GAUSSIAN, BLADES = range(4)
KIND_SHARES = (0.4, 0.2, 0.1, 0.3)


@dataclass(frozen=True)
class Batch:
    """`blur`, `sharp` (B, 3, S, S) in [0, 1]; `radius` (B, 1, S, S) in pixels."""

    blur: Tensor
    sharp: Tensor
    radius: Tensor


class CameraPairs:
    """Makes batches from photographs (3, H, W) uint8 that are in focus everywhere."""

    def __init__(self, photos: list[Tensor], radius_max: float, seed: int) -> None:
        self.photos, self.radius_max, self.seed = photos, radius_max, seed
        self.device = photos[0].device
        self.margin = math.ceil(radius_max) + 2

    @torch.no_grad()
    def batch(self, step: int, count: int, size: int) -> Batch:
        """Batch number `step`: `count` pairs of `size` pixels."""
        draw = _Draw(self.seed * 1_000_003 + step, count, self.device)
        side = size + 2 * self.margin
        gamma = draw.uniform(1.8, 2.6)
        sharp, blur, radius = self._scene(draw, side, gamma)
        soft = draw.uniform(0.0, 0.45)
        sharp, blur = (_gaussian(x.clamp(0, 1), soft).clamp(0, 1) for x in (sharp, blur))
        blur = _sensor(draw, blur)
        amount, width = draw.uniform(0.0, 0.8) * draw.chance(0.4), draw.uniform(0.6, 1.2)
        contrast = draw.uniform(-0.1, 0.5)
        pictures = []
        for light in (sharp, blur):
            pixels = light.clamp_min(0) ** (1 / gamma)
            pixels = pixels + contrast * (pixels**2 * (3 - 2 * pixels) - pixels)
            pixels = pixels + amount * (pixels - _gaussian(pixels, width))
            inside = slice(self.margin, self.margin + size)
            pictures.append(pixels[..., inside, inside].clamp(0, 1))
        blur = jpeg(draw, pictures[1])
        radius = radius[..., self.margin : self.margin + size, self.margin : self.margin + size]
        return Batch(blur, pictures[0], radius)

    def _scene(self, draw: _Draw, side: int, gamma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        lens = _Lens.drawn(draw, self.margin)
        strength = self.radius_max * draw.uniform(0.01, 1.0).sqrt()
        strength = strength * (1 - draw.chance(0.06))
        field = _depth(draw, side)
        spread = strength * draw.uniform(0.0, 1.0) ** 2
        centre = (strength - spread) * draw.uniform(-1.0, 1.0)
        signed = centre + spread * field  # field in [-1, 1]
        light = self._light(draw, side, gamma)
        blur = _surface(lens, light, signed)
        sharp, radius, nearest = light, signed.abs(), centre - spread
        number = draw.integers(OCCLUDERS + 1)
        for index in range(OCCLUDERS):
            light, coverage = self._occluder(draw, side, gamma)
            coverage = coverage * (index < number)
            nearest = nearest - (nearest + strength).clamp_min(0) * draw.uniform(0.0, 1.0) ** 2
            blurred = lens.blur(torch.cat([light * coverage, coverage], dim=1), nearest)
            blur = blurred[:, :3] + (1 - blurred[:, 3:]) * blur
            sharp = coverage * light + (1 - coverage) * sharp
            radius = torch.where(coverage > 0.5, nearest.abs().expand_as(radius), radius)
        return sharp, blur, radius

    def _light(self, draw: _Draw, side: int, gamma: Tensor) -> Tensor:
        """Windows in linear light (B, 3, side, side), of other colours, brighter than full scale
        here and there."""
        light = torch.stack(list(self._windows(draw, side))) ** gamma
        grey = light.mean(dim=1, keepdim=True)
        light = grey + draw.uniform(0.3, 1.1) * (light - grey)
        light = light.clamp_min(0) * draw.uniform(0.8, 1.25, channels=3)
        light = light * 2 ** draw.uniform(-0.7, 0.5)
        beyond = ((light.amax(dim=1, keepdim=True) - 0.7) / 0.3).clamp(0, 1).square()
        return light * (1 + beyond * draw.chance(0.5) * (draw.uniform(0.0, 2.5).exp() - 1))

    def _windows(self, draw: _Draw, side: int) -> Iterator[Tensor]:
        choices = draw.cpu(6)
        for which, exact, zoom, y, x, turn in choices.tolist():
            photo = self.photos[int(which * len(self.photos))]
            scale = 1.0 if exact < 0.35 else 0.55 + 0.45 * zoom
            length = min(round(side / scale), *photo.shape[-2:])
            top, left = (
                int(t * (n - length + 1)) for t, n in zip((y, x), photo.shape[-2:], strict=True)
            )
            window = photo[:, top : top + length, left : left + length].float()[None] / 255
            if length != side:
                window = F.interpolate(
                    window, (side, side), mode="bilinear", antialias=length > side
                )
            window = torch.rot90(window[0], int(turn * 4), (-2, -1))
            yield window.flip(-1) if turn * 8 % 2 < 1 else window

    def _occluder(self, draw: _Draw, side: int, gamma: Tensor) -> tuple[Tensor, Tensor]:
        """Light, and the coverage of a blob or of a bright or dark part of another photograph."""
        light = self._light(draw, side, gamma)
        y, x = _grid(side, light)
        cy, cx, mean = draw.uniform(-1, 1), draw.uniform(-1, 1), draw.uniform(0.1, 0.7)
        angle, distance = torch.atan2(y - cy, x - cx), torch.hypot(y - cy, x - cx)
        wobble = sum(
            draw.normal() * torch.cos(n * angle + draw.uniform(0, 6.3)) / n for n in range(2, 7)
        )
        blob = (mean * (1 + 0.3 * wobble) - distance) * side / 2
        bar_angle = draw.uniform(0, math.pi)
        across = (y - cy) * torch.cos(bar_angle) + (x - cx) * torch.sin(bar_angle)
        bar = (draw.uniform(0.01, 0.12) - across.abs()) * side / 2
        outline = torch.stack(list(self._windows(draw, side))).mean(dim=1, keepdim=True)
        outline = _gaussian(outline, draw.uniform(0.7, 2.0))
        level = outline.flatten(1).quantile(0.7, dim=1)[:, None, None, None]
        part = torch.minimum((outline - level) * 40, (1.5 * mean - distance) * side / 2)
        kind = draw.cpu(1)[:, :, None, None].to(light)
        shape = torch.where(kind < 0.4, blob, torch.where(kind < 0.55, bar, part))
        return light, (shape + 0.5).clamp(0, 1)


class _Draw:
    """Random numbers of a batch: (B, 1, 1, 1) on the device, or (B, n) on the CPU."""

    def __init__(self, seed: int, count: int, device: torch.device) -> None:
        self.random = torch.Generator().manual_seed(seed)
        self.fields = torch.Generator(device).manual_seed(seed)
        self.count, self.device = count, device

    def cpu(self, values: int) -> Tensor:
        return torch.rand(self.count, values, generator=self.random)

    def uniform(self, low: float, high: float, channels: int = 1) -> Tensor:
        value = low + (high - low) * self.cpu(channels)[:, :, None, None]
        return value.to(self.device, non_blocking=True)

    def normal(self) -> Tensor:
        value = torch.randn(self.count, 1, 1, 1, generator=self.random)
        return value.to(self.device, non_blocking=True)

    def chance(self, share: float) -> Tensor:
        return (self.uniform(0, 1) < share).float()

    def integers(self, below: int) -> Tensor:
        return (self.uniform(0, 1) * below).long()

    def noise(self, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=self.fields, device=self.device)


@dataclass(frozen=True)
class _Lens:
    """A lens for each picture: kind of PSF, blades, cat's eye, softness of the edge."""

    kind: Tensor
    blades: Tensor
    turn: Tensor
    eye: Tensor
    soft: Tensor
    size: int

    @classmethod
    def drawn(cls, draw: _Draw, margin: int) -> _Lens:
        shares = torch.tensor(KIND_SHARES, device=draw.device).cumsum(0)
        kind = (draw.uniform(0, 1) > shares[:3, None, None].view(1, 3, 1, 1)).sum(1, keepdim=True)
        eye = draw.uniform(0.0, 0.8) * draw.chance(0.35)
        blades = 5 + draw.integers(5)
        turn, soft = draw.uniform(0, 2 * math.pi), draw.uniform(0.0, 0.3)
        return cls(kind, blades, turn, eye, soft, 2 * margin - 1)

    def blur(self, image: Tensor, signed: Tensor) -> Tensor:
        """Blur images (B, C, N, N) by radii (B, 1, 1, 1) in pixels, negative before the focus."""
        otf = _spectrum(self._psf(signed), image.shape[-2:])
        return torch.fft.irfft2(torch.fft.rfft2(image) * otf, s=image.shape[-2:])

    def _psf(self, signed: Tensor) -> Tensor:
        fine = (torch.arange(self.size * SUB, device=signed.device) + 0.5) / SUB - self.size / 2
        radius = signed.abs().clamp_min(0.26)
        flip = torch.where(signed < 0, -1.0, 1.0)
        y, x = flip * fine[:, None] / radius, flip * fine[None] / radius
        rho = torch.hypot(y, x)
        sector = 2 * math.pi / self.blades
        angle = torch.remainder(torch.atan2(y, x) + self.turn, sector) - sector / 2
        edge = torch.cos(sector / 2) / torch.cos(angle)
        edge = torch.where(self.kind == BLADES, 0.5 * (1 + edge), torch.ones_like(edge))
        inside = (rho <= edge).float()
        shift = self.eye * torch.cos(self.turn), self.eye * torch.sin(self.turn)
        inside = inside * (torch.hypot(y - shift[0], x - shift[1]) <= 1.0)
        rim = 0.4 + 0.6 / (1 + (0.85 / rho.clamp_min(1e-6)) ** 6)
        flat = inside * torch.where(self.kind == RIM, rim, torch.ones_like(rim))
        gauss = torch.exp(-2 * rho.square())
        flat, gauss = (p / p.sum(dim=(-2, -1), keepdim=True) for p in (flat, gauss))
        soft = torch.where(self.kind == GAUSSIAN, torch.ones_like(self.soft), self.soft)
        return F.avg_pool2d((1 - soft) * flat + soft * gauss, SUB) * SUB**2


def _surface(lens: _Lens, light: Tensor, signed: Tensor) -> Tensor:
    """The background after the lens: slices from far to near (see pipeline.synthesize.render)."""
    low, high = (f(signed, dim=(-2, -1), keepdim=True) for f in (torch.amin, torch.amax))
    step = ((high - low) / (LEVELS - 1)).clamp_min(1e-3)
    place = (signed - low) / step
    blur = torch.zeros_like(light)
    for level in range(LEVELS - 1, -1, -1):
        nearer = (level + 1 - place).clamp(0, 1) if level < LEVELS - 1 else torch.ones_like(place)
        slice_ = lens.blur(torch.cat([light * nearer, nearer], dim=1), low + level * step)
        blur = slice_[:, :3] + (1 - slice_[:, 3:]) * blur
    return blur


def _depth(draw: _Draw, side: int) -> Tensor:
    """Inverse depths (B, 1, side, side) in [-1, 1]: slanted, with hills."""
    y, x = _grid(side, draw.uniform(0, 1))
    angle = draw.uniform(0, 2 * math.pi)
    field = torch.cos(angle) * x + torch.sin(angle) * y
    hills = draw.chance(0.5)
    for _ in range(4):
        phase = draw.uniform(-2, 2) * x + draw.uniform(-2, 2) * y
        field = field + hills * draw.normal() * torch.sin(math.pi * phase + draw.uniform(0, 6.3))
    low, high = (f(field, dim=(-2, -1), keepdim=True) for f in (torch.amin, torch.amax))
    return 2 * (field - low) / (high - low) - 1


def _grid(side: int, like: Tensor) -> tuple[Tensor, Tensor]:
    line = torch.linspace(-1, 1, side, device=like.device)
    return line[:, None], line[None]


def _sensor(draw: _Draw, light: Tensor) -> Tensor:
    """Shot and read noise of ISO 100 to 3200 or so; a camera's denoising smooths some of it."""
    gain = draw.uniform(math.log(0.2), math.log(30)).exp() * draw.chance(0.8)
    deviation = ((1e-4 * gain) ** 2 + light * gain / 50_000).sqrt()
    noise = deviation * draw.noise(light)
    smooth = draw.chance(0.5)
    return light + (1 - smooth) * noise + smooth * _gaussian(noise, draw.uniform(0.4, 1.0))


def _gaussian(image: Tensor, sigma: Tensor) -> Tensor:
    """Blur images (B, C, H, W) by Gaussians of `sigma` (B, 1, 1, 1) pixels, circular."""
    rows = torch.fft.fftfreq(image.shape[-2], device=image.device)
    columns = torch.fft.rfftfreq(image.shape[-1], device=image.device)
    square = rows[:, None].square() + columns.square()
    otf = torch.exp(-2 * math.pi**2 * sigma.square() * square)
    return torch.fft.irfft2(torch.fft.rfft2(image) * otf, s=image.shape[-2:])


def _spectrum(kernels: Tensor, size: torch.Size) -> Tensor:
    k = kernels.shape[-1]
    padded = F.pad(kernels, (0, size[1] - k, 0, size[0] - k))
    return torch.fft.rfft2(torch.roll(padded, (-(k // 2), -(k // 2)), (-2, -1)))


# ITU-T T.81, tables K.1 and K.2.
LUMA = (
    (16, 11, 10, 16, 24, 40, 51, 61), (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56), (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77), (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101), (72, 92, 95, 98, 112, 100, 103, 99),
)  # fmt: skip
CHROMA = (
    (17, 18, 24, 47, 99, 99, 99, 99), (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99), (47, 66, 99, 99, 99, 99, 99, 99),
    *[(99,) * 8] * 4,
)  # fmt: skip
TO_YCC = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))


def jpeg(draw: _Draw, pixels: Tensor) -> Tensor:
    """Compress 70 % of the pictures as JPEG of quality 60 to 100, some of them twice; 8 bits."""
    once = _jpeg_once(draw, pixels)
    again = _jpeg_once(draw, torch.roll(once, (4, 4), (-2, -1))).roll((-4, -4), (-2, -1))
    chosen, twice = draw.chance(0.7), draw.chance(0.2)
    result = chosen * (twice * again + (1 - twice) * once) + (1 - chosen) * pixels
    return (result * 255).round().clamp(0, 255) / 255


def _jpeg_once(draw: _Draw, pixels: Tensor) -> Tensor:
    height, width = pixels.shape[-2:]
    matrix = torch.tensor(TO_YCC)
    matrix, back = (m.to(pixels.device) for m in (matrix, torch.linalg.inv(matrix)))
    ycc = torch.einsum("cd,bdhw->bchw", matrix, pixels * 255)
    ycc = F.pad(ycc, (0, -width % 16, 0, -height % 16), mode="replicate")
    quality = draw.uniform(60, 100).clamp_max(99)
    scale = torch.where(quality < 50, 50 / quality, 2 - quality / 50)
    luma, chroma = (torch.tensor(t, device=pixels.device) * scale for t in (LUMA, CHROMA))
    y = _quantised(ycc[:, :1] - 128, luma)
    full = _quantised(ycc[:, 1:], chroma)
    half = F.interpolate(_quantised(F.avg_pool2d(ycc[:, 1:], 2), chroma), scale_factor=2)
    sampled = draw.chance(0.6)
    ycc = torch.cat([y + 128, sampled * half + (1 - sampled) * full], dim=1)
    rgb = torch.einsum("cd,bdhw->bchw", back, ycc)[..., :height, :width]
    return (rgb / 255).clamp(0, 1)


def _quantised(plane: Tensor, table: Tensor) -> Tensor:
    """The 8x8 DCT of planes (B, C, H, W), rounded to multiples of a table (B, 1, 8, 8)."""
    n = torch.arange(8, device=plane.device, dtype=torch.float32)
    dct = torch.cos(math.pi * (2 * n[None] + 1) * n[:, None] / 16) / 2
    dct[0] /= math.sqrt(2)
    count, channels, height, width = plane.shape
    blocks = plane.view(count, channels, height // 8, 8, width // 8, 8).transpose(3, 4)
    table = table[:, :, None, None].round().clamp_min(1)
    coefficients = (dct @ blocks @ dct.T / table).round() * table
    return (dct.T @ coefficients @ dct).transpose(3, 4).reshape(plane.shape)
