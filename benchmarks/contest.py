"""Pairs in memory, training by the clock, scoring: the same for every contestant.

Pairs are those of `era synthesize` from photos.txt, or like a camera's (`benchmarks.camera_pairs`)
from a folder of sharp photographs, of which every eighth of those listed is for the test. Time is
this thread's CPU time, and nothing but training counts: neither the making of the pairs nor the
looks at the test pictures for the curve.
"""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.camera_pairs import Batch, CameraPairs
from benchmarks.photograph_list import LIST
from benchmarks.photograph_network import load
from benchmarks.photos import extract
from pipeline.errors import UserError
from pipeline.images import to_float
from pipeline.metrics import psnr, ssim
from pipeline.synthesize.photos import load_photos
from pipeline.synthesize.write import make_pair

SIDE, RADIUS_MAX = 288, 7.0  # pixels
PAIRS = {"train": 1000, "test": 80}
INPUT_DB = (20.0, 36.0)  # test pictures blurred less or more are left out, as DPDD has few
CROP, BATCH = 128, 4
TEST_EVERY = 8  # of the photographs in photographs.tsv
SHARPEST = 0.7  # share of the places that is learned from, by detail
CLIP_NORM, EMA, WARMUP = 0.2, 0.995, 0.03
LOOKS, LOOKED_AT = 6, 15  # points of the curve, and test pictures for each

Pixels = np.ndarray[tuple[int, ...], np.dtype[np.uint16]]
# (model, blur, sharp, radius, share of the time that is over) -> loss
Step = Callable[[nn.Module, Tensor, Tensor, Tensor, float], Tensor]


class Pairs(NamedTuple):
    """uint16: blur and sharp (N, H, W, 3), radius (N, H, W) in 1/256 pixels."""

    blur: Pixels
    sharp: Pixels
    radius: Pixels


class Trained(NamedTuple):
    """Optimiser steps taken, and [seconds, mean gain of some pictures in dB] as it learned."""

    steps: int
    curve: list[list[float]]


def pairs(work: Path, split: str, mixed_psf: bool = False) -> Pairs:
    """The pairs of a split, made once from the photographs of photos.txt."""

    def make() -> list[Pairs]:
        extract(work / "photos")
        jobs = [(split, index, mixed_psf) for index in range(PAIRS[split])]
        with ProcessPoolExecutor(initializer=_open, initargs=(work / "photos",)) as pool:
            return list(pool.map(_make, jobs, chunksize=8))

    return _kept(work / f"{split}{'-mixed' if mixed_psf else ''}.npz", split, make)


def camera_pairs(work: Path, split: str, photos: Path) -> Pairs:
    """The pairs of a split, made once like a camera's from a folder of sharp photographs."""

    def make() -> list[Pairs]:
        tests = photographs_for_tests()
        own = load(photos, "cpu", lambda name: (name in tests) == (split == "test"))
        if not own:
            raise UserError(f"{photos}: no photograph there that {LIST.name} has for {split}")
        source = CameraPairs(own, RADIUS_MAX, seed=list(PAIRS).index(split))
        return [_stored(source.batch(index, 1, SIDE)) for index in range(PAIRS[split])]

    return _kept(work / f"{split}-camera.npz", split, make)


def photographs_for_tests() -> set[str]:
    """Names of the photographs that camera-like test pairs are cut from, of those listed."""
    with LIST.open() as stream:
        return set(
            sorted(row["file"] for row in csv.DictReader(stream, delimiter="\t"))[::TEST_EVERY]
        )


def _stored(made: Batch) -> Pairs:
    colours = (x[0].permute(1, 2, 0).mul(65535).round().numpy() for x in (made.blur, made.sharp))
    steps = made.radius[0, 0].mul(256).round().numpy()
    return Pairs(*(x.astype(np.uint16) for x in colours), steps.astype(np.uint16))


def _kept(file: Path, split: str, make: Callable[[], list[Pairs]]) -> Pairs:
    if not file.is_file():
        made = make()
        kept = made if split == "train" else [pair for pair in made if _counts(pair)]
        partial = file.with_suffix(".partial.npz")
        np.savez(partial, *(np.stack(part) for part in zip(*kept, strict=True)))
        partial.rename(file)
    with np.load(file) as found:
        return Pairs(*(found[f"arr_{n}"] for n in range(3)))


_photos = {}


def _open(folder: Path) -> None:
    _photos.update(load_photos(str(folder), (SIDE, SIDE)))


def _make(job: tuple[str, int, bool]) -> Pairs:
    split, index, mixed = job
    made = make_pair(_photos[split], split, index, 0, (SIDE, SIDE), RADIUS_MAX, mixed)
    images = (np.rint(image * 65535).astype(np.uint16) for image in (made.blur, made.sharp))
    return Pairs(*images, np.rint(made.radius * 256).astype(np.uint16))


def _counts(pair: Pairs) -> bool:
    return INPUT_DB[0] <= psnr(to_float(pair.blur), to_float(pair.sharp)) <= INPUT_DB[1]


def image(pixels: Pixels) -> Tensor:
    """(H, W, 3) -> (1, 3, H, W) in [0, 1]."""
    return torch.from_numpy(pixels.astype(np.float32) / 65535).permute(2, 0, 1)[None]


@dataclass(frozen=True)
class Recipe:
    """How a network learns: its loss, its learning rate, its optimiser groups (rate factors)."""

    step: Step
    learning_rate: float
    groups: Callable[[nn.Module], list[dict[str, object]]]


def train(
    model: nn.Module, recipe: Recipe, data: Pairs, test: Pairs, seconds: float, seed: int
) -> Trained:
    """Train for some CPU seconds; the model ends with its averaged weights, in eval mode."""
    optimiser = torch.optim.Adam(recipe.groups(model), lr=recipe.learning_rate)
    average = {name: value.clone() for name, value in model.state_dict().items()}
    batches, steps, spent, curve = crops(data, seed), 0, 0.0, []
    next(batches)  # looks for the places once
    few = Pairs(*(part[:: max(1, len(part) // LOOKED_AT)] for part in test))
    model.train()
    while spent < seconds:
        began = time.thread_time()
        over = spent / seconds
        rate = recipe.learning_rate * min(1.0, (over + 1e-3) / WARMUP)
        rate *= 0.005 + 0.995 * (1 + math.cos(math.pi * over)) / 2
        for group in optimiser.param_groups:
            group["lr"] = rate * group["rate"]
        loss = recipe.step(model, *next(batches), over)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimiser.step()
        steps += 1
        _average(average, model, min(EMA, (1 + steps) / (10 + steps)))
        spent += time.thread_time() - began
        if seconds > spent >= seconds * (len(curve) + 1) / LOOKS:
            curve.append([spent, _look(model, average, few)])
    model.load_state_dict(average)
    model.eval()
    return Trained(steps, [*curve, [seconds, mean_gain(model, few)]])


@torch.no_grad()
def _average(average: dict[str, Tensor], model: nn.Module, decay: float) -> None:
    for name, value in model.state_dict().items():
        average[name].lerp_(value, 1 - decay)


def _look(model: nn.Module, average: dict[str, Tensor], test: Pairs) -> float:
    now = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(average)
    model.eval()
    gain = mean_gain(model, test)
    model.load_state_dict(now)
    model.train()
    return gain


class Score(NamedTuple):
    """PSNR in dB and SSIM of one picture, blurred and restored."""

    psnr_blurred: float
    psnr: float
    ssim_blurred: float
    ssim: float

    @property
    def gain(self) -> float:
        """In dB."""
        return self.psnr - self.psnr_blurred


@torch.no_grad()
def score(model: nn.Module, test: Pairs) -> list[Score]:
    """Every picture's scores, by the protocol `standard`."""
    found = []
    for pixels, target, _ in zip(*test, strict=True):
        blur, sharp = to_float(pixels), to_float(target)
        output = restored(model, image(pixels))[0].permute(1, 2, 0).numpy()
        pictures = (blur, output)
        before, after = ((psnr(one, sharp), ssim(one, sharp)) for one in pictures)
        found.append(Score(before[0], after[0], before[1], after[1]))
    return found


@torch.no_grad()
def mean_gain(model: nn.Module, test: Pairs) -> float:
    """In dB, over the pictures."""
    gains = []
    for pixels, target, _ in zip(*test, strict=True):
        blur, sharp = image(pixels), image(target)
        errors = (
            (part.clamp(0, 1) - sharp).square().mean() for part in (blur, restored(model, blur))
        )
        gains.append(10 * math.log10(next(errors) / next(errors)))
    return float(np.mean(gains))


def restored(model: nn.Module, blur: Tensor) -> Tensor:
    """A contestant's restored images (B, 3, H, W), without ErA's further outputs."""
    output = model(blur.contiguous(memory_format=torch.channels_last))
    return output if isinstance(output, Tensor) else output.restored


@torch.no_grad()
def milliseconds(model: nn.Module) -> float:
    """CPU ms for a picture of 256 x 256 on one thread, the median of nine."""
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    picture, times = torch.rand(1, 3, 256, 256), []
    for _ in range(9):
        began = time.thread_time()
        restored(model, picture)
        times.append(time.thread_time() - began)
    return 1e3 * sorted(times)[4]


def crops(data: Pairs, seed: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Batches of blur, sharp (B, 3, S, S) and radius (B, 1, S, S) in pixels, turned at random."""
    rng = np.random.default_rng(seed)
    places = [_places(sharp) for sharp in data.sharp]
    while True:
        batch = []
        for index in rng.integers(len(places), size=BATCH):
            top, left = places[index][rng.integers(len(places[index]))]
            place = (slice(top, top + CROP), slice(left, left + CROP))
            turns, flip = rng.integers(4), slice(None, None, -1 if rng.integers(2) else None)
            batch.append([np.rot90(part[index][place], turns)[flip] for part in data])
        blur, sharp, radius = (
            torch.from_numpy(np.stack(part).astype(np.float32)) for part in zip(*batch, strict=True)
        )
        colours = (part.permute(0, 3, 1, 2) / 65535 for part in (blur, sharp))
        yield *colours, radius[:, None] / 256


def _places(sharp: Pixels) -> list[tuple[int, int]]:
    """Corners of the crops with most detail in the sharp picture."""
    grey = sharp.astype(np.float32).mean(axis=2)
    detail = np.abs(np.diff(grey, axis=0))[:, :-1] + np.abs(np.diff(grey, axis=1))[:-1]
    steps = range(0, SIDE - CROP + 1, 16)
    found = [
        (float(detail[top : top + CROP, left : left + CROP].sum()), top, left)
        for top in steps
        for left in steps
    ]
    kept = sorted(found, reverse=True)[: max(1, round(SHARPEST * len(found)))]
    return [(top, left) for _, top, left in kept]
