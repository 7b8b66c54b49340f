"""The order of samples: pure arithmetic on integers, with no torch, no files and no ranks.

Position p = 0, 1, 2, ... holds one sample: a crop of an image, and a flip. Which one is a function
of (seed, p), the data set's table of contents and a few settings, and of nothing else: not of
ranks, workers, caches or machines. Step s owns positions [s B, (s+1) B) for the global batch B, and
a step is divided among the ranks afterwards (`rank_slice`).

An epoch holds every image `crops_per_image` times. Shards are shuffled, then slots are shuffled
within windows of shards, so that a set larger than a node's disk is read window by window.

Random numbers are a keyed hash (splitmix64 of the key's parts): the same on every platform and in
every version of every library.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

U64 = np.ndarray[Any, np.dtype[np.uint64]]
Table = list[list[float]]
PROPOSALS = 8  # candidate places for a crop
SHARD, SLOT, PLACE, FLIP = 1, 2, 3, 4  # purposes of random numbers


@dataclass(frozen=True)
class OrderPlan:
    """The settings that define the order.

    Attributes:
        seed: key of all random numbers.
        global_batch: samples per optimiser step.
        crops_per_image: how often an image occurs in one epoch.
        window: number of shards shuffled together; 0 = all.
        patch: crop sizes in pixels; the steps are divided evenly among them.
        steps: optimiser steps of the whole run.
        rotate: allow quarter turns too.
        min_sharpness_quantile: share of the places, the least sharp ones, that is skipped.
    """

    seed: int
    global_batch: int
    crops_per_image: int
    window: int
    patch: tuple[int, ...]
    steps: int
    rotate: bool
    min_sharpness_quantile: float


@dataclass(frozen=True)
class Crop:
    """A sample: `size` pixels square at (top, left) of image `image`, then `flip` (0..7).

    Bit 0 of `flip` mirrors left and right, bit 1 up and down, bit 2 transposes.
    """

    image: int
    top: int
    left: int
    size: int
    flip: int

    def id(self, key: str) -> str:
        """The sample's name in samples.jsonl."""
        return f"{key}@{self.top},{self.left},{self.size},{self.flip}"


class Order:
    """The order over one data set.

    Args:
        plan: the settings.
        shard_counts: images per shard, in the manifest's order; images are numbered consecutively.
        sizes: (height, width) of every image.
    """

    def __init__(
        self, plan: OrderPlan, shard_counts: Sequence[int], sizes: Sequence[tuple[int, int]]
    ) -> None:
        self.plan = plan
        self.shard_counts = list(shard_counts)
        self.sizes = sizes
        self.images = sum(shard_counts)
        self._starts = np.concatenate([[0], np.cumsum(self.shard_counts)])
        self.per_epoch = self.images * plan.crops_per_image
        self.smallest = min(min(size) for size in sizes)
        self._ends = (-1, np.empty(0, np.int64))
        self._slots = lru_cache(maxsize=2)(self._shuffled)

    def patch(self, position: int) -> int:
        """The crop size of a position, pixels; never more than the smallest image has."""
        step = position // self.plan.global_batch
        index = min(step * len(self.plan.patch) // self.plan.steps, len(self.plan.patch) - 1)
        return min(self.plan.patch[index], self.smallest)

    def image(self, position: int) -> int:
        """The image at a position."""
        epoch, number = self.window(position)
        before = self._window_ends(epoch)[number - 1] if number else 0
        return int(self._slots(epoch, number)[position % self.per_epoch - before])

    def crop(self, position: int, sharpness: Table | None = None) -> Crop:
        """The sample at a position.

        Args:
            sharpness: `summed_area_table` of the image's coarse map, if crops are chosen by it.
        """
        return self.crop_of(position, self.image(position), sharpness)

    def crop_of(self, position: int, image: int, sharpness: Table | None = None) -> Crop:
        """The sample at a position with this image, which may replace a damaged one."""
        size = self.patch(position)
        places = self._places(position, image, size)
        top, left = places[0] if sharpness is None else self._sharp(places, image, size, sharpness)
        flips = 8 if self.plan.rotate else 4
        flip = mix_one(self.plan.seed, FLIP, position) % flips
        return Crop(image, top, left, size, flip)

    def window(self, position: int) -> tuple[int, int]:
        """(epoch, window) of a position."""
        epoch, place = divmod(position, self.per_epoch)
        return epoch, int(np.searchsorted(self._window_ends(epoch), place, side="right"))

    def window_shards(self, epoch: int, number: int) -> list[int]:
        """The shards of a window; after an epoch's last window, those of the next epoch's first."""
        size = self.plan.window or len(self.shard_counts)
        if number * size >= len(self.shard_counts):
            epoch, number = epoch + 1, 0
        return self._shards_of(epoch, number * size)

    def _shards_of(self, epoch: int, first: int) -> list[int]:
        size = self.plan.window or len(self.shard_counts)
        return [int(shard) for shard in self._shard_order(epoch)[first : first + size]]

    def _places(self, position: int, image: int, size: int) -> list[tuple[int, int]]:
        height, width = self.sizes[image]
        state = mix_one(self.plan.seed, PLACE, position)
        random = [_split_one(state ^ part) for part in _PARTS]
        tops, lefts = random[::2], random[1::2]
        rows, columns = height - size + 1, width - size + 1
        return [(top % rows, left % columns) for top, left in zip(tops, lefts, strict=True)]

    def _sharp(
        self, places: list[tuple[int, int]], image: int, size: int, sharpness: Table
    ) -> tuple[int, int]:
        """The first candidate that is not among the least sharp ones."""
        height, width = self.sizes[image]
        rows, columns = len(sharpness) - 1, len(sharpness[0]) - 1
        means = []
        for top, left in places:
            a, b = _cells(top, size, height, rows)
            c, d = _cells(left, size, width, columns)
            total = sharpness[b][d] - sharpness[a][d] - sharpness[b][c] + sharpness[a][c]
            means.append(total / ((b - a) * (d - c)))
        threshold = sorted(means)[int(self.plan.min_sharpness_quantile * len(means))]
        sharp = (p for p, mean in zip(places, means, strict=True) if mean >= threshold)
        return next(sharp, places[0])  # a map may hold what has no mean

    def _shard_order(self, epoch: int) -> np.ndarray[Any, Any]:
        shards = np.arange(len(self.shard_counts), dtype=np.uint64)
        return np.argsort(mix(self.plan.seed, SHARD, epoch, shards), kind="stable")

    def _window_ends(self, epoch: int) -> np.ndarray[Any, Any]:
        """Where an epoch's windows end, in positions; kept for one epoch at a time."""
        if self._ends[0] != epoch:
            slots = np.asarray(self.shard_counts)[self._shard_order(epoch)]
            size = self.plan.window or len(slots)
            totals = np.add.reduceat(slots, np.arange(0, len(slots), size))
            self._ends = (epoch, np.cumsum(totals) * self.plan.crops_per_image)
        return self._ends[1]

    def _shuffled(self, epoch: int, number: int) -> np.ndarray[Any, Any]:
        """The images at a window's positions; kept for two windows, since a batch may span them."""
        size = self.plan.window or len(self.shard_counts)
        shards = sorted(self._shards_of(epoch, number * size))
        images = np.concatenate([np.arange(self._starts[s], self._starts[s + 1]) for s in shards])
        slots = np.repeat(images, self.plan.crops_per_image)
        copies = np.tile(np.arange(self.plan.crops_per_image), len(images))
        random = mix(self.plan.seed, SLOT, epoch, slots.astype(np.uint64), copies.astype(np.uint64))
        return slots[np.argsort(random, kind="stable")]


def rank_slice(global_batch: int, rank: int, world_size: int) -> tuple[int, int]:
    """A rank's part [start, stop) of a step's positions: floor(r B / W) to floor((r+1) B / W)."""
    return rank * global_batch // world_size, (rank + 1) * global_batch // world_size


def evaluation_indices(count: int, rank: int, world_size: int) -> list[int]:
    """The images that a rank evaluates: every image on exactly one rank."""
    return list(range(rank, count, world_size))


def summed_area_table(sharpness: Sequence[Sequence[float]]) -> Table:
    """Sums of a map over all rectangles from its corner: the mean of any crop in four look-ups."""
    sums = np.zeros((len(sharpness) + 1, len(sharpness[0]) + 1))
    sums[1:, 1:] = np.cumsum(np.cumsum(np.asarray(sharpness, np.float64), axis=0), axis=1)
    return [[float(value) for value in row] for row in sums]


def mix(*parts: int | U64) -> U64:
    """Random 64-bit numbers from a key, by chained splitmix64; array parts are broadcast."""
    state: U64 = np.zeros(1, np.uint64)
    with np.errstate(over="ignore"):
        for part in parts:
            state = _splitmix(state ^ _splitmix(np.atleast_1d(np.asarray(part, np.uint64))))
    return state


def mix_one(*parts: int) -> int:
    """`mix` of integers without NumPy, which is much faster for one number."""
    state = 0
    for part in parts:
        state = _split_one(state ^ _split_one(part))
    return state


def _splitmix(x: U64) -> U64:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _split_one(x: int) -> int:
    x = (x + 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


_MASK = 2**64 - 1
_PARTS = [_split_one(number) for number in range(2 * PROPOSALS)]


def _cells(start: int, size: int, length: int, cells: int) -> tuple[int, int]:
    first = start * cells // length
    return first, max(first + 1, -(-(start + size) * cells // length))
