"""What restoring takes of memory, and what fits into it."""

from __future__ import annotations

from era import ErAConfig
from pipeline.errors import UserError
from pipeline.inference.tiles import OVERLAP

MAX_PIXELS = 2 * 1024 * 1024  # larger photographs are cut into tiles
ESTIMATE_BYTES = (
    110  # per pixel, of estimating the blur; 107 and 109 measured at 4 and 9 megapixels
)
FRAGMENTED = 1.5  # times the memory, unless freed blocks return to the system at once
RESULT_VALUES = 18  # per pixel, beside the weights: blurred, sharp, restored, E, radii
BAND_BYTES = 20  # per pixel of a row of tiles, which are blended in place; 28 with maps
MOST_GB = 1e6


def pixels_for(config: ErAConfig, memory_gb: float) -> int:
    """The largest number of pixels that the network can work on at once in `memory_gb`.

    Counts the copies of the weights and spectra for each kernel, the features of the prior's finest
    level, and those of the solver: 808 bytes per pixel for size tiny, whose measured peaks are 690
    and 630 at 1 and 1.6 megapixels.

    Raises:
        UserError: unless the memory is a positive number.
    """
    if not 0 < memory_gb <= MOST_GB:
        raise UserError(
            f"--memory {memory_gb:g}: expected a number of GB above 0 and at most {MOST_GB:g}"
        )
    return max((2 * OVERLAP) ** 2, int(memory_gb * 1e9 / _bytes_per_pixel(config)))


def bytes_of(config: ErAConfig, pixels: int) -> int:
    """About how much memory `restore_array` takes for so many pixels, maps and floats included, in
    a process that frees memory as the C library does (docs/photographs.md)."""
    at_once = min(pixels, MAX_PIXELS) * _bytes_per_pixel(config) * FRAGMENTED
    kept = 4 * (config.kernels + RESULT_VALUES) + ESTIMATE_BYTES
    return int(at_once + pixels * kept)


def _bytes_per_pixel(config: ErAConfig) -> int:
    return 4 * (4 * config.kernels + 5 * config.prior_channels[0] + 90)
