"""The pictures that a validation shows in W&B."""

from __future__ import annotations

import numpy as np

from pipeline.arrays import Image
from pipeline.case import Case


def panels(case: Case) -> dict[str, Image]:
    """A case as pictures by name: uint8, (H, W, 3) or (H, W)."""
    error = np.abs(case.error).mean(axis=-1)
    found = {"blurred": _to_bytes(case.blur), "restored": _to_bytes(case.restored)}
    if case.sharp is not None:
        found["sharp"] = _to_bytes(case.sharp)
    return found | {
        "error": _to_bytes(error / max(float(error.max()), 1e-6)),
        "radius": _to_bytes(case.radius / max(float(case.radius.max()), 1e-6)),
        "weights": _to_bytes(np.concatenate(list(case.weights), axis=1)),
        "kernels": _to_bytes(np.concatenate([k / k.max() for k in case.kernels], axis=1)),
    }


def _to_bytes(image: Image) -> Image:
    return (np.clip(image, 0.0, 1.0) * 255 + 0.5).astype(np.uint8)
