"""`era demo`: the whole chain on real photographs, then one page that shows it.

Every step can be repeated: an interrupted demo continues where it stopped.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import numpy as np

from pipeline import storage
from pipeline.arrays import Image
from pipeline.config import TrainConfig, load_train_config, to_plain
from pipeline.evaluate import Evaluation, evaluate
from pipeline.images import from_float, write_png
from pipeline.preprocess import preprocess
from pipeline.report import DemoReport, write_demo_report
from pipeline.restore import restore
from pipeline.runfolder import RunFolder
from pipeline.runfolder.names import METRICS
from pipeline.synthesize import synthesize
from pipeline.train import train

PAIRS, SEED = 100, 0
PACKAGES = ("torch", "ray", "numpy", "scikit-image", "opencv-python-headless")


def demo(out: str, overrides: list[str] | None = None) -> dict[str, Any]:
    """Synthesise pairs, make shards, train, evaluate, restore and report.

    The network is trained from its initial state; the test pairs come from other photographs than
    the training pairs.

    Args:
        out: URL of a folder for all results.
        overrides: overrides of the training configuration `tiny`.

    Returns:
        What `summary.json` holds: `psnr_blurred`, `psnr_restored`, `ssim_blurred`,
        `ssim_restored`, `images`, `seconds` (of this call).
    """
    out = storage.absolute(out)
    pairs, shards = storage.join(out, "pairs"), storage.join(out, "shards")
    clock = _Clock()
    config = _config(out, shards, overrides or [])
    with clock("synthesize"):
        synthesize("bundled", pairs, PAIRS, SEED)
    with clock("preprocess"):
        preprocess("dpdd", pairs, shards)
    with clock("train"):
        run = train(config)
    with clock("evaluate"):
        test = storage.join(shards, "test")
        found = evaluate(run["run"], test, storage.join(out, "evaluation"))
        check = evaluate(run["run"], config.data.val, storage.join(out, "validation"))
    with clock("restore"):
        blurred = storage.join(pairs, "test_c", "source")
        restore([blurred], storage.join(out, "restored"), checkpoint=run["run"])
    summary = _summary(found, clock)
    storage.write_json(storage.join(out, "summary.json"), summary)
    write_png(storage.join(out, "before_after.png"), before_after(check))
    page = storage.join(out, "report.html")
    write_demo_report(page, _report(summary, found, run["run"], config, clock))
    return {**summary, "report": page}


class _Clock:
    """Measures the seconds of each step."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, step: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.seconds[step] = time.monotonic() - began

    @property
    def total(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.began


def before_after(found: Evaluation) -> Image:
    """Blurred, restored and sharp side by side, for the case with the greatest gain.

    Shown in the README, hence made from the validation photograph, which is in the public domain
    (CC0).
    """
    best = max(found.cases, key=lambda case: case.gain)
    parts = [best.blur, best.restored, best.blur if best.sharp is None else best.sharp]
    gap = np.ones((best.blur.shape[0], 6, 3), np.float32)
    return from_float(np.hstack([parts[0], gap, parts[1], gap, parts[2]]), np.uint8)


def _config(out: str, shards: str, overrides: list[str]) -> TrainConfig:
    places = [
        "run.name=demo",
        f"run.root={storage.join(out, 'runs')}",
        f"data.train={storage.join(shards, 'train')}",
        f"data.val={storage.join(shards, 'val')}",
    ]
    return load_train_config("tiny", [*places, *overrides])


def _summary(found: Evaluation, clock: _Clock) -> dict[str, Any]:
    scores = found.summary
    return {
        "psnr_blurred": scores["psnr_blurred"],
        "psnr_restored": scores["psnr"],
        "ssim_blurred": scores["ssim_blurred"],
        "ssim_restored": scores["ssim"],
        "images": scores["images"],
        "seconds": clock.total,
    }


def _report(
    summary: dict[str, Any], found: Evaluation, run: str, config: TrainConfig, clock: _Clock
) -> DemoReport:
    settings = to_plain(config)
    settings["run"].pop("root")
    for name in ("train", "val"):
        settings["data"][name] = storage.name_of(settings["data"][name])
    return DemoReport(
        summary=summary,
        prediction=found.summary["prediction"],
        cases=found.cases,
        metrics=RunFolder(run).lines(METRICS),
        settings=settings,
        versions={"python": platform.python_version(), **{p: version(p) for p in PACKAGES}},
        seconds=clock.seconds,
    )
