"""Pictures for pages: arrays become data URIs, metrics become curves."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from pipeline.images import encode_png, from_float, to_float

Image = np.ndarray[Any, Any]
JPEG_QUALITY = 92
MAX_SIDE = 640  # pixels of an embedded picture; larger ones are reduced
CROP = 128  # pixels
DIFFERENCE = 0.2  # mean over the channels: the brightest colour of an error map


@dataclass(frozen=True)
class Case:
    """One image of an evaluation.

    Attributes:
        key: its name.
        blur, restored: (H, W, 3) float in [0, 1]. sharp: the same, or None without ground truth.
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

    @cached_property
    def crops(self) -> dict[str, str]:
        """The same crop of blurred, restored, sharp and error as data URIs, at full resolution."""
        place = busiest(np.abs(self.restored - self.blur).sum(axis=2), CROP)
        crops = {"blurred": picture(self.blur[place]), "restored": picture(self.restored[place])}
        if self.sharp is not None:
            crops["sharp"] = picture(self.sharp[place])
            difference = np.abs(self.restored - self.sharp).mean(axis=2)
            crops["difference"] = heat(difference[place], DIFFERENCE)
        return crops

    @cached_property
    def pictures(self) -> dict[str, str]:
        """All pictures as data URIs."""
        most = float(
            max(self.radius.max(), 0 if self.true_radius is None else self.true_radius.max())
        )
        pictures = {"blurred": picture(self.blur), "restored": picture(self.restored)}
        if self.sharp is not None:
            pictures["sharp"] = picture(self.sharp)
            pictures["difference"] = heat(
                np.abs(self.restored - self.sharp).mean(axis=2), DIFFERENCE
            )
        pictures["radius"] = heat(self.radius, most)
        if self.true_radius is not None:
            pictures["true radius"] = heat(self.true_radius, most)
        pictures["error E"] = heat(np.abs(self.error).mean(axis=2), None)
        pictures["weights"] = picture(tile(self.weights))
        pictures["kernels"] = picture(
            tile(self.kernels / self.kernels.max(axis=(1, 2), keepdims=True))
        )
        return pictures


def busiest(values: Image, side: int) -> tuple[slice, slice]:
    """The square of at most `side` pixels with the greatest sum of values (H, W)."""
    import cv2

    height, width = (min(side, n) for n in values.shape)
    sums = cv2.boxFilter(values.astype(np.float32), -1, (width, height), anchor=(0, 0))
    valid = sums[: values.shape[0] - height + 1, : values.shape[1] - width + 1]
    top, left = np.unravel_index(int(valid.argmax()), valid.shape)
    return slice(int(top), int(top) + height), slice(int(left), int(left) + width)


def picture(image: Image) -> str:
    """A float image (H, W) or (H, W, 3) in [0, 1] as a data URI, reduced to MAX_SIDE: colour as
    JPEG of high quality, the rest as PNG."""
    import cv2

    image = np.asarray(image, np.float32)
    scale = MAX_SIDE / max(image.shape[:2])
    if scale < 1:
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    pixels = from_float(image, np.uint8)
    if pixels.ndim == 2:
        return "data:image/png;base64," + base64.b64encode(encode_png(pixels)).decode()
    options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    _, data = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), options)
    return "data:image/jpeg;base64," + base64.b64encode(bytes(data)).decode()


def heat(values: Image, most: float | None) -> str:
    """A map (H, W) from 0 to `most` (None: its own maximum) in false colours, as a data URI."""
    return picture(to_float(false_colours(values, most)))


def false_colours(values: Image, most: float | None) -> Image:
    """A map (H, W) from 0 to `most` (None: its own maximum) as uint8 (H, W, 3)."""
    from matplotlib import colormaps

    top = float(values.max()) if most is None else most
    colours = colormaps["magma"](np.clip(values / max(top, 1e-6), 0, 1), bytes=True)
    return np.ascontiguousarray(colours[..., :3])


def tile(maps: Image) -> Image:
    """Lay maps (K, h, w) out in rows of at most four, with white gaps; (H, W)."""
    columns = min(4, len(maps))
    rows = -(-len(maps) // columns)
    height, width = maps.shape[1:]
    gap = max(1, width // 24)
    sheet = np.ones((rows * (height + gap) - gap, columns * (width + gap) - gap), np.float32)
    for index, one in enumerate(maps):
        y, x = index // columns * (height + gap), index % columns * (width + gap)
        sheet[y : y + height, x : x + width] = one
    return sheet


def curves(lines: list[dict[str, float]], names: dict[str, str]) -> dict[str, str]:
    """Curves over the step as inline SVG, one for each metric that is there.

    Args:
        lines: of metrics.jsonl.
        names: metric name -> title.
    """
    found = {}
    for name, title in names.items():
        points = [(line["step"], line[name]) for line in lines if name in line]
        if points:
            found[title] = svg({name: points})
    return found


def svg(
    lines: dict[str, list[tuple[float, float]]],
    legend: bool = False,
    size: tuple[float, float] = (4.2, 2.4),
    over: str = "step",
) -> str:
    """Lines (name -> points) as inline SVG in the page's own colours; `over` names the abscissa."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    style: Any = {"svg.hashsalt": "era", "svg.fonttype": "none", "font.size": 9}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        colours = ["#d9480f"] if len(lines) == 1 else [None] * len(lines)
        for colour, (name, points) in zip(colours, lines.items(), strict=True):
            marker = "o" if len(points) < 30 else ""
            axes.plot(*zip(*points, strict=True), color=colour, marker=marker, ms=4, label=name)
        axes.set_xlabel(over)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if legend:
            axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
        stream = io.StringIO()
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    drawn = stream.getvalue()
    # Text and axes take the page's colour, so that they show in light and dark.
    return drawn[drawn.index("<svg") :].replace("#000000", "currentColor")
