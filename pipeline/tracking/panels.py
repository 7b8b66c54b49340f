"""The pictures that a validation shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Image = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Panel:
    """One validation image's pictures, float HWC in [0, 1] unless said otherwise."""

    key: str
    blur: Image
    restored: Image
    sharp: Image
    error: Image
    radius: Image  # HW, pixels
    weights: Image  # KHW
    kernels: Image  # Kkk

    def pictures(self) -> dict[str, Image]:
        """All as pictures: uint8, HWC or HW."""
        error = np.abs(self.error).mean(axis=-1)
        return {
            "blurred": _to_bytes(self.blur),
            "restored": _to_bytes(self.restored),
            "sharp": _to_bytes(self.sharp),
            "error": _to_bytes(error / max(float(error.max()), 1e-6)),
            "radius": _to_bytes(self.radius / max(float(self.radius.max()), 1e-6)),
            "weights": _to_bytes(np.concatenate(list(self.weights), axis=1)),
            "kernels": _to_bytes(np.concatenate([k / k.max() for k in self.kernels], axis=1)),
        }


def _to_bytes(image: Image) -> Image:
    return (np.clip(image, 0.0, 1.0) * 255 + 0.5).astype(np.uint8)
