"""Pictures for pages: arrays as data URIs, metrics as curves."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.arrays import Image
from pipeline.case import Case
from pipeline.images import encode_png, from_float, to_float

if TYPE_CHECKING:
    from matplotlib.figure import Figure

JPEG_QUALITY = 92
MAX_SIDE = 640  # pixels of an embedded picture; larger ones are reduced
CROP = 128  # pixels
DIFFERENCE = 0.2  # mean over the channels: the brightest colour of an error map


@dataclass(frozen=True)
class Shown:
    """A case ready for a page: what is special about it, and its pictures as data URIs by name."""

    word: str
    case: Case
    pictures: dict[str, str]
    crops: dict[str, str]

    @staticmethod
    def of(word: str, case: Case) -> Shown:
        """Draw a case."""
        return Shown(word, case, whole_pictures(case), crops(case))


def crops(case: Case) -> dict[str, str]:
    """The same crop of blurred, restored, sharp and error as data URIs, at full resolution."""
    place = busiest(np.abs(case.restored - case.blur).sum(axis=2), CROP)
    found = {"blurred": picture(case.blur[place]), "restored": picture(case.restored[place])}
    if case.sharp is not None:
        found["sharp"] = picture(case.sharp[place])
        difference = np.abs(case.restored - case.sharp).mean(axis=2)
        found["difference"] = heat(difference[place], DIFFERENCE)
    return found


def whole_pictures(case: Case) -> dict[str, str]:
    """All pictures and maps of a case as data URIs."""
    known = [case.radius] if case.true_radius is None else [case.radius, case.true_radius]
    most = max(float(radius.max()) for radius in known)
    found = {"blurred": picture(case.blur), "restored": picture(case.restored)}
    if case.sharp is not None:
        found["sharp"] = picture(case.sharp)
        difference = np.abs(case.restored - case.sharp).mean(axis=2)
        found["difference"] = heat(difference, DIFFERENCE)
    found["radius"] = heat(case.radius, most)
    if case.true_radius is not None:
        found["true radius"] = heat(case.true_radius, most)
    found["error E"] = heat(np.abs(case.error).mean(axis=2), None)
    found["weights"] = picture(tile(case.weights))
    found["kernels"] = picture(tile(case.kernels / case.kernels.max(axis=(1, 2), keepdims=True)))
    return found


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
    high-quality JPEG, grey as PNG."""
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
    """Arrange maps (K, h, w) in rows of at most four, with white gaps; (H, W)."""
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
    """Curves over the step as inline SVG, one for each metric that occurs.

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
        return drawn(figure)


def drawn(figure: Figure) -> str:
    """A figure as inline SVG; black takes the page's colour, which suits light and dark themes."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    text = stream.getvalue()
    return text[text.index("<svg") :].replace("#000000", "currentColor")
