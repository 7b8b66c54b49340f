"""One image with everything the network says about it, and the truth where it is known."""

from __future__ import annotations

from dataclasses import dataclass, field

from pipeline.arrays import EMPTY, Image


@dataclass(frozen=True)
class Case:
    """One restored image. Arrays that were not asked for, or are not known, are `EMPTY` or None.

    Attributes:
        restored: (H, W, 3) float32 in [0, 1], before rounding.
        kernels: (K, k, k). weights: (K, H, W), summing to 1. radius: (H, W), pixels.
        error: E (H, W, 3).
        finite: whether all values of `restored` are, before they were clamped into `pixels`.
        pixels: the restored image in the input's type. coarse_radius: (H/4, W/4), pixels.
        key: its name.
        blur, sharp: (H, W, 3) float in [0, 1].
        true_radius: (H, W), pixels, where it is known.
        scores: by name, such as ``psnr`` and ``psnr_blurred``.
    """

    restored: Image
    kernels: Image
    weights: Image
    radius: Image
    error: Image
    finite: bool = True
    pixels: Image = field(default_factory=EMPTY.copy)
    coarse_radius: Image = field(default_factory=EMPTY.copy)
    key: str = ""
    blur: Image = field(default_factory=EMPTY.copy)
    sharp: Image | None = None
    true_radius: Image | None = None
    scores: dict[str, float] = field(default_factory=dict)

    @property
    def gain(self) -> float:
        """PSNR gained over the blurred image, dB."""
        return self.scores.get("psnr", 0.0) - self.scores.get("psnr_blurred", 0.0)
