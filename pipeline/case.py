"""One image with everything the network says about it: for validation, evaluation and pages."""

from __future__ import annotations

from dataclasses import dataclass, field

from pipeline.arrays import Image


@dataclass(frozen=True)
class Case:
    """One restored image.

    Attributes:
        key: its name.
        blur, restored: (H, W, 3) float in [0, 1]. sharp: likewise, or None without ground truth.
        kernels: (K, k, k). weights: (K, H, W). radius: (H, W), pixels. error: E (H, W, 3).
        true_radius: (H, W), pixels, where it is known.
        scores: by name, such as ``psnr`` and ``psnr_blurred``.
    """

    key: str
    blur: Image
    restored: Image
    sharp: Image | None
    kernels: Image
    weights: Image
    radius: Image
    error: Image
    true_radius: Image | None = None
    scores: dict[str, float] = field(default_factory=dict)

    @property
    def gain(self) -> float:
        """PSNR gained over the blurred image, dB."""
        return self.scores.get("psnr", 0.0) - self.scores.get("psnr_blurred", 0.0)
