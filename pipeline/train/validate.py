"""Validation on whole images: each image on one rank, the same mean for any world size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from era import ErA
from pipeline.case import Case
from pipeline.data.order import evaluation_indices
from pipeline.data.split import Split
from pipeline.images import to_float
from pipeline.inference import restore_array
from pipeline.metrics import psnr, ssim
from pipeline.train.loop import gather_lists


def validate(
    model: ErA,
    split: Split,
    rank: int,
    world_size: int,
    images: int,
    alive: Callable[[], object] = lambda: None,
) -> tuple[dict[str, float], list[Case]]:
    """Score the model on every image of a split.

    Args:
        images: panels wanted, of the split's first images whatever the number of ranks: rank 0
            restores those again that belong to others.
        alive: called after each image.

    Returns:
        The means on every rank, and the panels on rank 0.
    """
    scores: list[tuple[float, ...]] = []
    panels: list[Case] = []
    own = evaluation_indices(len(split), rank, world_size)
    drawn = range(min(images, len(split))) if rank == 0 else range(0)
    for index in sorted({*own, *drawn}):
        sample = split.load(index)
        assert sample.sharp is not None  # open_splits refuses sets without ground truth
        blur, sharp = to_float(sample.blur), to_float(sample.sharp)
        result = restore_array(model, sample.blur)
        restored = result.restored
        if index in own:
            pairs = (restored, sharp), (blur, sharp)
            values = [score(*pair) for pair in pairs for score in (psnr, ssim)]
            scores.append((index, *values))
        if index in drawn:
            panels.append(replace(result, key=sample.key, blur=blur, sharp=sharp))
        alive()
    return _means(gather_lists(scores)), panels


def _means(scores: list[tuple[float, ...]]) -> dict[str, float]:
    table = np.array([score[1:] for score in sorted(scores)], dtype=np.float64)
    names = ("val/psnr", "val/ssim", "val/psnr_blurred", "val/ssim_blurred")
    return {name: float(value) for name, value in zip(names, table.mean(axis=0), strict=True)}
