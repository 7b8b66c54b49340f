"""The pages, rendered from jinja2 templates."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from pipeline import storage
from pipeline.case import Case
from pipeline.report.parallel import parallel
from pipeline.report.pictures import Shown, curves, svg

CURVES = {
    "train/loss": "training loss",
    "val/psnr": "validation PSNR (dB)",
    "val/ssim": "validation SSIM",
    "train/error_share": "share of non-zero E",
}
MAX_CASES = 12  # drawn with pictures; the table lists all


@dataclass(frozen=True)
class DemoReport:
    """What `report.html` shows.

    Attributes:
        summary: the demo's summary.json.
        prediction: rows that compare the estimates with the truth. cases: the test images.
        metrics: lines of the run's metrics.jsonl.
        settings: the run's configuration, plain values by section.
        versions: package -> version.
        seconds: step of the chain -> seconds it took.
    """

    summary: dict[str, Any]
    prediction: list[dict[str, Any]]
    cases: list[Case]
    metrics: list[dict[str, float]]
    settings: dict[str, Any]
    versions: dict[str, str]
    seconds: dict[str, float]


@dataclass(frozen=True)
class Gallery:
    """What `gallery.html` shows.

    Attributes:
        summary: the evaluation's: means, intervals, protocol, means by label, comparison.
        rows: every image's scores. cases: those with pictures.
        published: figures for the same test set, if any.
    """

    title: str
    summary: dict[str, Any]
    rows: list[dict[str, Any]]
    cases: list[Case]
    published: list[dict[str, Any]] = field(default_factory=list)

    @property
    def labels(self) -> dict[str, dict[str, Any]]:
        """Means by label, such as indoor and outdoor."""
        means = {k: v for k, v in self.summary.items() if isinstance(v, dict)}
        return {k: v for k, v in means.items() if k not in ("comparison", "against")}


@dataclass(frozen=True)
class SweepPage:
    """What `sweep.html` shows.

    Attributes:
        metric: what the trials are ranked by. rows: the table of trials, all with the same keys.
        curves: trial -> points (step, metric).
        best: URL of the best checkpoint. value: its metric. config: the best trial's.
        settings: names of the searched keys among a row's. importance: of each, summing to 1.
        exchanges: rows of population-based training, all with the same keys.
    """

    title: str
    metric: str
    rows: list[dict[str, Any]]
    curves: dict[str, list[tuple[float, float]]]
    best: str
    value: float
    config: dict[str, Any]
    settings: list[str] = field(default_factory=list)
    importance: dict[str, float] = field(default_factory=dict)
    exchanges: list[dict[str, Any]] = field(default_factory=list)


def write_sweep_page(url: str, page: SweepPage) -> None:
    """Write a sweep's page: a single self-contained file."""
    chart = svg(page.curves, legend=len(page.curves) <= 10, size=(8.0, 3.2))
    lines = parallel(page.rows, page.settings, page.metric)
    text = _template("sweep.html").render(page=page, chart=chart, lines=lines)
    storage.write_text(url, text)


def write_demo_report(url: str, report: DemoReport) -> None:
    """Write the demo's page: a single self-contained file."""
    page = _template("report.html").render(
        report=report, cases=_drawn(report.cases), curves=curves(report.metrics, CURVES)
    )
    storage.write_text(url, page)


def write_gallery(url: str, gallery: Gallery) -> None:
    """Write an evaluation's page: a single self-contained file."""
    page = _template("gallery.html").render(gallery=gallery, cases=_drawn(gallery.cases))
    storage.write_text(url, page)


def _drawn(cases: list[Case]) -> list[Shown]:
    return [Shown.of(word, case) for word, case in chosen(cases)]


def chosen(cases: list[Case]) -> list[tuple[str, Case]]:
    """The cases to draw, each with its distinction: best, worst and median gain first."""
    if not cases or cases[0].sharp is None:
        return [("", case) for case in cases[:MAX_CASES]]
    ranked = sorted(cases, key=lambda case: case.gain, reverse=True)
    named = {0: "greatest gain", len(ranked) - 1: "least gain", len(ranked) // 2: "median gain"}
    first = [(word, ranked[index]) for index, word in named.items()]
    rest = [("", case) for index, case in enumerate(ranked) if index not in named]
    return (first + rest)[:MAX_CASES]


@lru_cache(maxsize=4)
def _template(name: str) -> Any:
    from jinja2 import Environment, PackageLoader, select_autoescape

    loader = PackageLoader("pipeline.report", "templates")
    environment = Environment(loader=loader, autoescape=select_autoescape(), trim_blocks=True)
    return environment.get_template(name)
