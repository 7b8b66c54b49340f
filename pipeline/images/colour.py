"""Tone curves: a photograph's own numbers to sRGB's and back.

The network was trained on sRGB. What differs most in other spaces is the tone curve (linear light,
the gammas of Adobe RGB and ProPhoto), so every channel is mapped from the curve of its profile to
that of sRGB and back. Primaries stay the photograph's own: blur is the same in any, and a wide
gamut is clipped nowhere.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.arrays import Image

TOLERANCE = 1.5 / 255  # of sRGB's numbers: nearer curves are taken for sRGB's own
SAMPLES = 4096
INVERTIBLE = 0.02  # of full scale: a curve that loses more on the way back is damaged
RGB_CURVES, GREY_CURVE = (b"rTRC", b"gTRC", b"bTRC"), b"kTRC"
Curve = Callable[[Image], Image]


@dataclass(frozen=True)
class Tone:
    """The tables of one photograph.

    Attributes:
        forward: uint16 (channels, 256 or 65536), own number -> sRGB's, of 16 bits.
        backward: of the photograph's type (channels, 65536), the way back.
    """

    forward: Image
    backward: Image

    def to_srgb(self, image: Image) -> Image:
        """(H, W, 3) as uint16 numbers of sRGB."""
        return _mapped(self.forward, image)

    def from_srgb(self, image: Image) -> Image:
        """The way back, of the photograph's type."""
        return _mapped(self.backward, image)


def tone_of(icc: bytes, transfer: float | None, grey: bool, dtype: np.dtype[Any]) -> Tone | None:
    """The tables for a profile or an exponent; None where the numbers are sRGB's already.

    Args:
        icc: a profile, or b"". One without curves (a printer's tables), or with curves that have no
            way back (a damaged one), is taken for sRGB.
        transfer: without a profile, the exponent that gives linear light.
        grey: which curves of the profile are meant.
        dtype: of the photograph.
    """
    curves = profile_curves(icc, grey) if icc else []
    if not icc and transfer:
        curves = [_power(transfer)] * 3
    grid = np.linspace(0, 1, SAMPLES)
    with np.errstate(all="ignore"):  # of damaged curves, whose numbers are refused here
        light = [curve(grid) for curve in curves]
        if not light or not np.isfinite(light).all():
            return None
        if all(np.abs(encode_srgb(one) - grid).max() <= TOLERANCE for one in light):
            return None
        tables = [_tables(curve, dtype) for curve in curves]
    numbers = np.arange(int(np.iinfo(dtype).max) + 1)
    if any(np.abs(b[f] - numbers).max() > INVERTIBLE * numbers[-1] for f, b in tables):
        return None
    return Tone(np.stack([one for one, _ in tables]), np.stack([back for _, back in tables]))


def profile_curves(icc: bytes, grey: bool) -> list[Curve]:
    """The curves of an ICC profile to linear light, for R, G, B; empty where it has none."""
    try:
        (count,) = struct.unpack_from(">I", icc, 128)
        rows = [struct.unpack_from(">4sII", icc, 132 + 12 * n) for n in range(min(count, 100))]
        tags = {name: icc[place : place + size] for name, place, size in rows}
        wanted = (GREY_CURVE,) * 3 if grey and GREY_CURVE in tags else RGB_CURVES
        return [_curve(tags[name]) for name in wanted]
    except (struct.error, KeyError, ValueError, ZeroDivisionError):
        return []


def encode_srgb(light: Image) -> Image:
    """Linear light in [0, 1] as sRGB's numbers in [0, 1]."""
    light = np.clip(light, 0, 1)
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def _curve(tag: bytes) -> Curve:
    """A curve of type `curv` or `para` (ICC.1:2022, 10.6 and 10.18)."""
    kind = tag[:4]
    if kind == b"curv":
        (count,) = struct.unpack_from(">I", tag, 8)
        if count == 0:
            return _power(1.0)
        values = np.frombuffer(tag, ">u2", count, 12).astype(np.float64)
        if count == 1:
            return _power(values[0] / 256)
        return lambda x: np.interp(x, np.linspace(0, 1, count), values / 65535)
    if kind != b"para":
        raise ValueError(f"a curve of type {kind!r}")
    (form,) = struct.unpack_from(">H", tag, 8)
    length = (1, 3, 4, 5, 7)[form] if form < 5 else 0
    given = [value / 65536 for value in struct.unpack_from(f">{length}i", tag, 12)]
    return _parametric(form, given)


def _parametric(form: int, given: list[float]) -> Curve:
    g, a, b, c, d, e, f = (*given, *[0.0] * (7 - len(given)))
    if form == 0:
        return _power(g)
    if form == 1:
        c, d = 0.0, -b / a
    elif form == 2:
        c, d, e, f = 0.0, -b / a, c, c
    return lambda x: np.where(x >= d, np.maximum(a * x + b, 0) ** g + e, c * x + f)


def _power(exponent: float) -> Curve:
    if not exponent > 0:
        raise ValueError("a gamma that is not positive")
    return lambda x: np.asarray(x**exponent)


def _tables(curve: Curve, dtype: np.dtype[Any]) -> tuple[Image, Image]:
    most = int(np.iinfo(dtype).max)
    numbers = np.arange(most + 1)
    own = np.maximum.accumulate(encode_srgb(curve(numbers / most)))
    back = np.interp(np.arange(65536) / 65535, own, numbers)
    return np.rint(own * 65535).astype(np.uint16), np.rint(back).astype(dtype)


def _mapped(tables: Image, image: Image) -> Image:
    out = np.empty(image.shape, tables.dtype)
    for channel in range(image.shape[2]):
        out[..., channel] = tables[channel][image[..., channel]]
    return out
