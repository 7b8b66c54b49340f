"""Pictures of other methods, scored as the restored ones are and compared image by image."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline import storage
from pipeline.data.split import Split
from pipeline.errors import UserError, printable
from pipeline.evaluate.score import scores_of, split_of
from pipeline.images import list_images, read_image, to_float
from pipeline.parallel_map import parallel_map
from pipeline.progress import track

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_+-]{0,39}")
COLUMNS = ("psnr", "ssim", "mae", "lpips")  # in per_image.csv; no method may have such a name


@dataclass(frozen=True)
class _Job:
    """One picture of a method: URLs of the picture and of the split, and the image's index."""

    picture: str
    data: str
    index: int
    protocol: str
    lpips_weights: str


def pictures_of(against: Sequence[str], split: Split) -> dict[str, list[str]]:
    """The methods of ``NAME=FOLDER`` and their pictures' URLs, in the order of the split.

    Raises:
        UserError: for another form, a split without sharp images, or a folder without exactly one
            picture for each image, under the image's key.
    """
    found: dict[str, list[str]] = {}
    for text in against:
        name, equals, folder = text.partition("=")
        if not equals or not folder or not NAME.fullmatch(name) or name.lower() in COLUMNS:
            raise UserError(
                f"--against {printable(text)}: expected NAME=FOLDER, the name of letters, digits, "
                f"_, + and -, and none of {', '.join(COLUMNS)}"
            )
        if name in found:
            raise UserError(f"--against {name}: given twice")
        if not split.has_sharp:
            raise UserError("--against needs a sharp image for every image of the split")
        found[name] = _matched(storage.absolute(folder), split.keys)
    return found


def _matched(folder: str, keys: Sequence[str]) -> list[str]:
    by_stem: dict[str, str] = {}
    for url in list_images(folder):
        stem = storage.name_of(url).rpartition(".")[0]
        if stem in by_stem:
            raise UserError(f"{folder}: two pictures are called {printable(stem)}")
        by_stem[stem] = url
    for key in keys:
        if key not in by_stem:
            raise UserError(
                f"{folder}: no picture is called {key} (.png, .jpg, ...); each image of the split "
                "needs one"
            )
    return [by_stem[key] for key in keys]


def score_pictures(
    pictures: dict[str, list[str]], data: str, protocol: str, lpips_weights: str
) -> dict[str, list[dict[str, float]]]:
    """Scores of every method's pictures, image by image.

    Raises:
        UserError: for a picture that cannot be read or has another size than its image.
    """
    found = {}
    for name, urls in pictures.items():
        jobs = [_Job(url, data, n, protocol, lpips_weights) for n, url in enumerate(urls)]
        scored = dict(track(parallel_map(_score, jobs), len(jobs), name))
        found[name] = [scored[index] for index in range(len(jobs))]
    return found


def _score(job: _Job) -> dict[str, float]:
    sharp = split_of(job.data).load(job.index).sharp
    assert sharp is not None  # ensured by pictures_of
    image = read_image(job.picture)
    if image.shape != sharp.shape:
        size, expected = (f"{a.shape[1]}x{a.shape[0]}" for a in (image, sharp))
        raise UserError(f"{job.picture}: {size} pixels; the sharp image has {expected}")
    return scores_of(to_float(image), to_float(sharp), job.protocol, job.lpips_weights)


def columns(scores: dict[str, list[dict[str, Any]]], index: int) -> dict[str, Any]:
    """A row's further columns: ``NAME_psnr`` and so on."""
    return {f"{name}_{k}": v for name, rows in scores.items() for k, v in rows[index].items()}
