"""How much memory a photograph takes, from its header alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

from era import ErAConfig
from pipeline.errors import UserError
from pipeline.images.raster import Size
from pipeline.inference.memory import BAND_BYTES, ESTIMATE_BYTES, MAX_PIXELS, pixels_for
from pipeline.inference.tiles import OVERLAP

NETWORK_SHARE = 2 / 3  # of the memory, at most, is the network's; the rest is the photograph's
# From here on freed memory is kept for the next tensors, which takes this much more of it.
KEEPS_FROM_GB, KEEPING = 2.0, 1.6
LEAST_NETWORK = 0.2e9  # bytes; smaller tiles would be mostly overlap
COPIES = 3  # of the photograph: as decoded, as restored, as it is encoded
SCALED_BYTES = 40  # per pixel, with a working scale: floats of photograph, correction and sum
COMPARE_BYTES = 18  # per pixel, with --compare: two pictures side by side, as they are encoded
MAP_BYTES = 28  # per pixel, beside the weights: radius, E, and their pictures


@dataclass(frozen=True)
class Plan:
    """How many pixels the network takes at once: to restore, and to estimate the blur."""

    max_pixels: int
    estimate_pixels: int


def plan(
    size: Size,
    file_bytes: int,
    config: ErAConfig,
    memory_gb: float,
    *,
    scaled: bool,
    compare: bool,
    maps: bool,
) -> Plan:
    """Divide the memory between a photograph and the network.

    Raises:
        UserError: if the photograph does not fit.
    """
    pixels = size.height * size.width
    per_pixel = SCALED_BYTES * scaled + COMPARE_BYTES * compare
    per_pixel += (MAP_BYTES + 4 * config.kernels) * maps
    rgb = pixels * 3 * size.bytes_each
    own = file_bytes + COPIES * max(rgb, size.bytes) + pixels * per_pixel
    own += pixels * 4 * (config.kernels + 1) // 16  # the coarse maps of the estimate
    row = 2 * OVERLAP * size.width * BAND_BYTES if pixels > MAX_PIXELS else 0
    least = own + row + LEAST_NETWORK
    if least > memory_gb * 1e9:
        need = math.ceil(least / 1e8) / 10
        raise UserError(
            f"{pixels / 1e6:.0f} megapixels need about {need:g} GB, more than --memory "
            f"{memory_gb:g}; give it --memory {math.ceil(need):d}"
        )
    left = memory_gb - own / 1e9
    tile = pixels_for(config, min(memory_gb * NETWORK_SHARE, left))
    row = BAND_BYTES * size.width * math.isqrt(tile) if pixels > tile else 0
    network = min(memory_gb * NETWORK_SHARE, max(left - row / 1e9, LEAST_NETWORK / 1e9))
    network /= KEEPING if memory_gb >= KEEPS_FROM_GB else 1.0
    return Plan(pixels_for(config, network), max(int(network * 1e9 / ESTIMATE_BYTES), 1))
