"""Restore and score one image; the figures do not depend on where this is done."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from era import ErA
from pipeline.arrays import RADIUS_UNITS, Image
from pipeline.case import Case
from pipeline.checkpoint import load_model
from pipeline.data.split import Split, open_split
from pipeline.errors import UserError
from pipeline.evaluate.calibration import calibration
from pipeline.evaluate.lpips import lpips
from pipeline.images import to_float
from pipeline.inference import bytes_of, require_finite, restore_array, to_device
from pipeline.metrics import mae, prepare, psnr, ssim

_opening = threading.Lock()
_device = threading.Lock()  # one image at a time on a GPU, while others are read and scored


@dataclass(frozen=True)
class ScoreJob:
    """Everything needed to score one image; can be pickled.

    Attributes:
        checkpoint: URL. data: URL of a split. index: of the image.
        lpips_weights: URL; empty omits LPIPS.
        pictures: keep the pictures for the gallery.
        device: `pipeline.inference.DEVICES`.
    """

    checkpoint: str
    data: str
    index: int
    protocol: str
    lpips_weights: str = ""
    pictures: bool = False
    device: str = "cpu"


def score(job: ScoreJob) -> tuple[dict[str, Any], Case | None]:
    """Restore and score one image, on one thread.

    Returns:
        A row of per_image.csv (without scores if there is no ground truth), and the pictures.
    """
    torch.set_num_threads(1)  # the sums of a convolution depend on the number of threads
    with _opening:
        model, split = _model(job.checkpoint, job.device), split_of(job.data)
    sample = split.load(job.index)
    result = _restored(model, sample.blur, job.device)
    require_finite(result, job.checkpoint)
    blur = to_float(sample.blur)
    row: dict[str, Any] = {"name": sample.key, "height": blur.shape[0], "width": blur.shape[1]}
    sharp = None if sample.sharp is None else to_float(sample.sharp)
    if sharp is not None:
        for suffix, image in (("", result.restored), ("_blurred", blur)):
            scores = scores_of(image, sharp, job.protocol, job.lpips_weights)
            row |= {name + suffix: value for name, value in scores.items()}
        row["gain"] = row["psnr"] - row["psnr_blurred"]
    true_radius = None if sample.radius is None else sample.radius / np.float32(RADIUS_UNITS)
    if true_radius is not None:
        row["radius_error"] = float(np.abs(result.radius - true_radius).mean())
        row |= calibration(result.radius, true_radius, result.error, blur)
    if not job.pictures:
        return row, None
    figures = {name: value for name, value in row.items() if isinstance(value, float)}
    case = replace(result, key=sample.key, blur=blur, sharp=sharp, true_radius=true_radius)
    return row, replace(case, scores=figures)


def _restored(model: ErA, blur: Image, device: str) -> Case:
    if device == "cpu":
        return restore_array(model, blur)
    try:
        with _device:
            return restore_array(model, blur)
    except torch.OutOfMemoryError:
        raise UserError(
            f"--device {device}: {blur.shape[1]}x{blur.shape[0]} pixels do not fit; "
            "leave the option out"
        ) from None


def bytes_for(checkpoint: str, pixels: int) -> int:
    """About how much memory `score` takes for an image of so many pixels."""
    return bytes_of(_model(checkpoint, "cpu").config, pixels)


def scores_of(
    image: Image, sharp: Image, protocol: str, lpips_weights: str = ""
) -> dict[str, float]:
    """PSNR, SSIM, MAE and, with weights, LPIPS of an image (H, W, 3), float in [0, 1]."""
    scores = {
        "psnr": psnr(image, sharp, protocol),
        "ssim": ssim(image, sharp, protocol),
        "mae": mae(image, sharp, protocol),
    }
    if lpips_weights:
        scores["lpips"] = lpips(prepare(image, protocol), prepare(sharp, protocol), lpips_weights)
    return scores


@lru_cache(maxsize=4)
def _model(url: str, device: str) -> ErA:
    return to_device(load_model(url).model, device)


@lru_cache(maxsize=2)
def split_of(url: str) -> Split:
    """A split, opened once in a process."""
    return open_split(url)
