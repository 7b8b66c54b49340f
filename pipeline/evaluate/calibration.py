"""How far the estimates can be trusted: the radius against the truth, E against true outliers.

True outliers are pixels that no blur of a single picture explains: saturated ones, and those at the
edges where one surface occludes another.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from pipeline.arrays import Image

RADII = (0, 1, 2, 3, 5, 7, 10, 15, 20, 65)  # pixels: bounds of the table's rows
SATURATED = 254.5 / 255
EDGE = 1.0  # pixels: a jump of the true radius within EDGE_WINDOW that only an occlusion makes
EDGE_WINDOW = 5
PLACES = {
    "saturated": "where a channel is saturated",
    "edges": "at occlusion edges",
    "elsewhere": "elsewhere",
}
BINS = list(itertools.pairwise(RADII))
# Column of per_image.csv -> quantity, place, unit.
FIGURES = {
    f"radius_error_{low}_{high}": ("radius error", f"true radius {low} to {high} px", "px")
    for low, high in BINS
} | {f"e_{place}": ("size of E", text, "8-bit steps") for place, text in PLACES.items()}


def calibration(radius: Image, true: Image, error: Image, blur: Image) -> dict[str, float | None]:
    """Figures of one image; None for a place that it does not have.

    Args:
        radius, true: estimated and true blur radius (H, W), pixels.
        error: E (H, W, 3). blur: (H, W, 3) in [0, 1].

    Returns:
        `radius_error_A_B` in pixels for true radii from A to below B, and `e_PLACE`: mean |E| in
        8-bit steps.
    """
    distance = np.abs(radius - true)
    size = 255 * np.abs(error).mean(axis=2)
    bins = [_mean(distance, (true >= low) & (true < high)) for low, high in BINS]
    places = outliers(true, blur)
    return dict(zip(FIGURES, [*bins, *(_mean(size, places[p]) for p in PLACES)], strict=True))


def outliers(true: Image, blur: Image) -> dict[str, Image]:
    """Masks (H, W): saturated, at an occlusion edge (and not saturated), elsewhere."""
    from scipy.ndimage import maximum_filter, minimum_filter

    saturated = blur.max(axis=2) >= SATURATED
    jump = maximum_filter(true, EDGE_WINDOW) - minimum_filter(true, EDGE_WINDOW)
    edges = (jump > EDGE) & ~saturated
    return {"saturated": saturated, "edges": edges, "elsewhere": ~(saturated | edges)}


def table(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows for display: means over the images that have such pixels; empty without truth."""
    found = []
    for column, (what, where, unit) in FIGURES.items():
        values = [row[column] for row in rows if row.get(column) is not None]
        if values:
            row = {"figure": what, "where": where, "mean": float(np.mean(values))}
            found.append({**row, "unit": unit, "images": len(values)})
    return found


def _mean(values: Image, mask: Image) -> float | None:
    return float(values[mask].mean()) if mask.any() else None
