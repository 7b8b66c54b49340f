"""Parallel coordinates: each trial a line through its settings, coloured by its result."""

from __future__ import annotations

import json
import math
from typing import Any

from pipeline.report.pictures import drawn

Scale = tuple[list[float], list[tuple[float, str]]]  # heights of the values, ticks with labels


def parallel(rows: list[dict[str, Any]], names: list[str], metric: str) -> str:
    """The rows with a result as inline SVG, one axis per name and one for the metric.

    Args:
        rows: by name, the settings and the result. names: of the settings.

    Returns:
        Empty where fewer than two rows have a result.
    """
    rows = [row for row in rows if isinstance(row.get(metric), float)]
    if len(rows) < 2:
        return ""
    import matplotlib
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    columns = [*names, metric]
    scales = [scale([row[name] for row in rows]) for name in columns]
    with matplotlib.rc_context({"svg.hashsalt": "era", "svg.fonttype": "none", "font.size": 8}):
        figure = Figure(figsize=(8.0, 3.0), layout="constrained")
        axes = figure.add_subplot()
        for number in range(len(rows)):
            heights = [values[number] for values, _ in scales]
            axes.plot(heights, color=colormaps["viridis"](heights[-1]), alpha=0.8)
        for place, (_, ticks) in enumerate(scales):
            axes.axvline(place, color="#000000", lw=0.6)
            for height, label in ticks:
                axes.text(place + 0.03, height, label, va="center", parse_math=False)
        axes.set_xticks(range(len(columns)), columns, parse_math=False)
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
        return drawn(figure)


def scale(values: list[Any]) -> Scale:
    """Heights in [0, 1]: numbers by value, by logarithm from two decades on; others by rank."""
    if all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values):
        least, most = min(values), max(values)
        log = least > 0 and most / least >= 100
        low, high = (math.log(least), math.log(most)) if log else (least, most)
        span = (high - low) or 1.0
        heights = [((math.log(v) if log else v) - low) / span for v in values]
        return heights, [(0.0, f"{least:.4g}"), *([(1.0, f"{most:.4g}")] if most > least else [])]
    kinds = sorted({json.dumps(v) for v in values})
    place = {kind: number / max(1, len(kinds) - 1) for number, kind in enumerate(kinds)}
    return [place[json.dumps(v)] for v in values], [(at, kind[:24]) for kind, at in place.items()]
