"""Scores under named, frozen protocols. Images are float (H, W, 3) RGB in [0, 1].

`standard`: range 1, clamped, not requantised, SSIM with scikit-image's 7x7 uniform window: what
DPDNet, IFAN and Restormer report. `nrknet`: rounded to 8 bits, SSIM with an 11x11 Gaussian window
(sigma 1.5). Figures of different protocols cannot be compared.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.arrays import Image
from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.data.split import Split

LEAST_SIDE = 32  # pixels; less has no LPIPS, and SSIM's window does not fit


@dataclass(frozen=True)
class Protocol:
    """How images are prepared and which SSIM window is used."""

    round_to_8_bits: bool
    gaussian_ssim: bool


PROTOCOLS = {
    "standard": Protocol(round_to_8_bits=False, gaussian_ssim=False),
    "nrknet": Protocol(round_to_8_bits=True, gaussian_ssim=True),
}


def protocol_named(name: str) -> Protocol:
    """Return a protocol.

    Raises:
        UserError: if there is none of that name.
    """
    if name not in PROTOCOLS:
        raise UserError(f"protocol {name!r}: unknown; known: {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def require_scorable(split: Split) -> None:
    """Check the images of a split that have a sharp one.

    Raises:
        UserError: for one with a side of less than `LEAST_SIDE`.
    """
    for entry in (entry for shard in split.manifest.shards for entry in shard.samples):
        if "sharp.npy" in entry.members and min(entry.height, entry.width) < LEAST_SIDE:
            raise UserError(
                f"{split.url}: {entry.key} has {entry.width}x{entry.height} pixels; at least "
                f"{LEAST_SIDE} on each side are needed for scores"
            )


def prepare(image: Image, protocol: str = "standard") -> Image:
    """Clamp (and, where the protocol says so, round) an image; float64."""
    clamped = np.clip(image.astype(np.float64), 0.0, 1.0)
    return np.rint(clamped * 255) / 255 if protocol_named(protocol).round_to_8_bits else clamped


def psnr(restored: Image, sharp: Image, protocol: str = "standard") -> float:
    """Peak signal-to-noise ratio in dB over all pixels and channels; infinite for equal images."""
    from skimage.metrics import peak_signal_noise_ratio

    a, b = prepare(restored, protocol), prepare(sharp, protocol)
    with np.errstate(divide="ignore"):
        return float(peak_signal_noise_ratio(b, a, data_range=1.0))


def ssim(restored: Image, sharp: Image, protocol: str = "standard") -> float:
    """Structural similarity, the mean over pixels and channels, in [-1, 1].

    Images smaller than the window of `standard` get the largest odd window that fits; sides of
    less than `LEAST_SIDE` are for `require_scorable` to refuse.
    """
    from skimage.metrics import structural_similarity

    a, b = prepare(restored, protocol), prepare(sharp, protocol)
    side = min(a.shape[:2])
    options: dict[str, Any] = {"win_size": min(7, side - (side + 1) % 2)}
    if protocol_named(protocol).gaussian_ssim:
        options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    return float(structural_similarity(b, a, data_range=1.0, channel_axis=-1, **options))


def mae(restored: Image, sharp: Image, protocol: str = "standard") -> float:
    """Mean absolute error over all pixels and channels, in [0, 1]."""
    return float(np.abs(prepare(restored, protocol) - prepare(sharp, protocol)).mean())
