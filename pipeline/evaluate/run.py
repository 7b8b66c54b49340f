"""`era evaluate`: scores every image in parallel; means with intervals, a CSV and a gallery."""

from __future__ import annotations

import csv
import io
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pipeline import storage
from pipeline.case import Case
from pipeline.checkpoint import resolve
from pipeline.cluster import has_cluster
from pipeline.data.manifest import Manifest
from pipeline.data.split import Split, open_split
from pipeline.errors import UserError
from pipeline.evaluate.against import columns, pictures_of, score_pictures
from pipeline.evaluate.calibration import FIGURES, table
from pipeline.evaluate.labels import read_labels
from pipeline.evaluate.lpips import find_weights
from pipeline.evaluate.published import published_rows
from pipeline.evaluate.score import ScoreJob, bytes_for, score
from pipeline.inference import check_device
from pipeline.machine import free_memory, processors
from pipeline.metrics import protocol_named, require_scorable
from pipeline.parallel_map import parallel_map
from pipeline.progress import track
from pipeline.report import Gallery, write_gallery

log = logging.getLogger("era")
Row = dict[str, Any]
MEANS = (
    "psnr",
    "ssim",
    "mae",
    "lpips",
    "psnr_blurred",
    "ssim_blurred",
    "mae_blurred",
    "lpips_blurred",
    "gain",
    "radius_error",
)
INTERVALS = ("psnr", "ssim", "gain")
PICTURES, LEAST_PICTURES = 12, 3  # images drawn in the gallery
PICTURE_PIXELS = 24_000_000  # of them together, at about 100 bytes each; the least are drawn anyway
MEMORY_SHARE = 0.8  # of what is free, for images that are restored at once
FEW = 20  # values; below it an interval is Student's


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation: summary, one row per image, and pictures of some images."""

    summary: dict[str, Any]
    rows: list[Row]
    cases: list[Case]


def evaluate(
    checkpoint: str,
    data: str,
    out: str,
    protocol: str = "standard",
    lpips_weights: str = "",
    compare: str = "",
    against: Sequence[str] = (),
    device: str = "cpu",
) -> Evaluation:
    """Score a checkpoint on a split.

    Args:
        checkpoint: URL of a run, a checkpoint or a bundle, or the name of a shipped model.
        data: URL of a split. out: URL of a folder for `per_image.csv` and `gallery.html`.
        protocol: see `pipeline.metrics`.
        lpips_weights: URL of AlexNet's weights; empty looks in torch's usual cache.
        compare: a second checkpoint, compared image by image.
        against: ``NAME=FOLDER``, the pictures of another method under the images' keys; each is
            scored and compared image by image (`against` in the summary, columns in the CSV).
        device: ``cpu`` or ``cuda``, on which images are restored; scores are computed on the CPU.

    Returns:
        The summary has the means over the images (`psnr`, `ssim`, `mae`, `lpips`, `psnr_blurred`,
        ...; None where there is no ground truth), 95 % intervals, `images`, `protocol`;
        `prediction`: how the radius and E compare with the truth, where it is known.

    Raises:
        UserError: for a checkpoint, a split, label files or weights that cannot be used; before any
            image is scored.
    """
    protocol_named(protocol)
    check_device(device)
    storage.check_writable(out)
    data = storage.absolute(data)
    split = open_split(data)
    require_scorable(split)
    labels = read_labels(data, split.manifest.split, len(split))
    weights, reason = find_weights(lpips_weights)
    job = ScoreJob(resolve(checkpoint).url, data, 0, protocol, weights, device=device)
    rival = resolve(compare).url if compare else ""
    if compare and not split.has_sharp:
        raise UserError("--compare needs a sharp image for every image of the split")
    pictures = pictures_of(against, split)
    others = score_pictures(pictures, data, protocol, weights)
    rows = _score_all(job, split)
    summary: dict[str, Any] = {
        **totals(rows),
        "prediction": table(rows),
        "images": len(rows),
        "protocol": protocol,
        "checkpoint": job.checkpoint,
    }
    if reason:
        summary["lpips_note"] = reason
    known = len(_known(rows, "psnr"))
    if 0 < known < len(rows):
        summary["truth_note"] = f"{known} of {len(rows)} images have a sharp one: means of these"
    summary |= by_label(labels, rows)
    if compare:
        other = _score_all(replace(job, checkpoint=rival), split)
        summary["comparison"] = {"checkpoint": rival, **comparison(rows, other)}
    if others:
        summary["against"] = {
            name: {**_means(found), **comparison(rows, found)} for name, found in others.items()
        }
        rows = [{**row, **columns(others, index)} for index, row in enumerate(rows)]
    if reason:
        rows = [{**row, "lpips": None} if "psnr" in row else row for row in rows]
    told = _filled([{**row, "lpips": reason} if "lpips" in row and reason else row for row in rows])
    rows = _filled(rows)
    storage.write_text(storage.join(out, "per_image.csv"), _csv(told))
    cases = _pictures(job, rows, split)
    gallery = Gallery(
        title=f"{split.manifest.dataset} {split.manifest.split}",
        summary=summary,
        rows=[{k: v for k, v in row.items() if k not in FIGURES} for row in rows],
        cases=cases,
        published=published(split.manifest, summary),
    )
    write_gallery(storage.join(out, "gallery.html"), gallery)
    return Evaluation(summary, rows, cases)


def totals(rows: list[Row]) -> dict[str, Any]:
    """Means over the images, and the 95 % intervals of the main ones.

    Images without a value are left out. A mean is None where no image has it, or where one has an
    infinite PSNR (two pictures with equal pixels); `psnr_note` then names that image.
    """
    means: dict[str, Any] = {name: _mean(rows, name) for name in MEANS}
    for name in INTERVALS:
        if means[name] is not None and len(_known(rows, name)) > 1:
            means[f"{name}_interval"] = interval(_known(rows, name))
    infinite = [r["name"] for r in rows if math.inf in (r.get("psnr"), r.get("psnr_blurred"))]
    if infinite:
        means["psnr_note"] = (
            f"{infinite[0]}: pixels equal the sharp image's, so the PSNR is infinite and has no "
            f"mean ({len(infinite)} of {len(rows)} images)"
        )
    return means


def _means(rows: list[dict[str, float]]) -> dict[str, float | None]:
    return {name: _mean(rows, name) for name in rows[0]}


def _mean(rows: list[Row], name: str) -> float | None:
    values = _known(rows, name)
    mean = float(np.mean(values)) if values else math.nan
    return mean if math.isfinite(mean) else None


def _known(rows: list[Row], name: str) -> list[float]:
    return [row[name] for row in rows if row.get(name) is not None]


def _filled(rows: list[Row]) -> list[Row]:
    """The rows with all columns that any of them has; None where a row lacks one."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    return [{name: row.get(name) for name in names} for row in rows]


def interval(values: list[float]) -> list[float]:
    """The 95 % interval of a mean; the same values give the same interval.

    Student's of fewer than `FEW` values, whose resamples vary too little (of four values, the
    bootstrap's holds the mean in 80 % of all cases); else the percentile bootstrap's.
    """
    from scipy import stats

    if len(values) < FEW:
        mean, error = float(np.mean(values)), float(stats.sem(values))
        half = error * float(stats.t.ppf(0.975, len(values) - 1))
        return [mean - half, mean + half]
    found = stats.bootstrap(
        (np.asarray(values),),
        np.mean,
        n_resamples=2000,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return [float(found.low), float(found.high)]


def comparison(rows: list[Row], other: list[Row]) -> dict[str, Any]:
    """The paired differences of two checkpoints (first minus second), image by image.

    A difference is None where it is infinite for an image. There must be ground truth.
    """
    found: dict[str, Any] = {}
    for name in ("psnr", "ssim", "lpips"):
        if name == "lpips" and name not in rows[0]:
            continue
        differences = [_difference(a[name], b[name]) for a, b in zip(rows, other, strict=True)]
        finite = all(map(math.isfinite, differences))
        found[f"{name}_difference"] = float(np.mean(differences)) if finite else None
        several = finite and len(differences) > 1
        found[f"{name}_interval"] = interval(differences) if several else None
    better = sum(a["psnr"] > b["psnr"] for a, b in zip(rows, other, strict=True))
    return {**found, "better": better, "images": len(rows)}


def _difference(a: float, b: float) -> float:
    return 0.0 if a == b else a - b  # also for two infinite PSNRs


def _score_all(job: ScoreJob, split: Split) -> list[Row]:
    found = dict(track(_scored(job, range(len(split)), split), len(split), "evaluate"))
    return [found[index][0] for index in range(len(split))]


def _scored(
    job: ScoreJob, indices: Sequence[int], split: Split
) -> Iterator[tuple[int, tuple[Row, Case | None]]]:
    jobs = [replace(job, index=index) for index in indices]
    workers = 0 if has_cluster() else _at_once(job.checkpoint, _largest(split))
    return parallel_map(score, jobs, workers, int(job.device == "cuda"))


def _at_once(checkpoint: str, pixels: int) -> int:
    """How many images of so many pixels this machine restores at the same time."""
    room = int(free_memory() * MEMORY_SHARE / bytes_for(checkpoint, pixels))
    return max(1, min(processors(), room))


def _largest(split: Split) -> int:
    return max(height * width for height, width in split.sizes)


def _pictures(job: ScoreJob, rows: list[Row], split: Split) -> list[Case]:
    """Pictures of the best, the worst, the median and some other images."""
    order = sorted(range(len(rows)), key=lambda index: -(rows[index].get("gain") or 0.0))
    most = max(LEAST_PICTURES, PICTURE_PIXELS // _largest(split))
    count = min(PICTURES, most, len(order))
    places = np.linspace(0, len(order) - 1, count).round().astype(int)
    chosen = sorted({order[place] for place in places})
    found = dict(_scored(replace(job, pictures=True), chosen, split))
    return [case for index in range(len(chosen)) if (case := found[index][1]) is not None]


def by_label(labels: dict[str, list[int]], rows: list[Row]) -> dict[str, Any]:
    """Means over the images of each label; numbers count from 1. None without ground truth."""
    if not _known(rows, "psnr"):
        return {}
    found = {}
    for label, numbers in labels.items():
        means = totals([rows[number - 1] for number in numbers])
        names = ("psnr", "ssim", "mae", "lpips")
        found[label] = {"images": len(numbers), **{name: means[name] for name in names}}
    return found


def published(manifest: Manifest, summary: dict[str, Any]) -> list[dict[str, Any]]:
    """The published table with this checkpoint as one more row; none for other data."""
    rows: list[dict[str, Any]] = list(published_rows(manifest.dataset, summary["images"]))
    if not rows or manifest.split != "test" or manifest.radius:  # true radii: synthetic pairs
        return []
    mine = {name: summary[name] for name in ("psnr", "ssim", "lpips")}
    return [*rows, {"method": f"this checkpoint, protocol {summary['protocol']}", **mine}]


def _csv(rows: list[Row]) -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()
