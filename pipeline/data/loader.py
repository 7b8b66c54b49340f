"""The loader: follows the order, copies crops out of memory maps, prefetches a few steps.

Crops are copied once, from the map into the batch, as uint16 HWC; everything else happens on the
device (`augment`). A copy takes a tenth of a millisecond, so threads suffice: there are no
worker processes to start, feed or lose.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
import torch
from torch import Tensor

from pipeline import storage
from pipeline.arrays import Image
from pipeline.data.batch import Batch
from pipeline.data.order import Crop, Order, OrderPlan, Table, rank_slice, summed_area_table
from pipeline.data.shards import BLUR, RADIUS, SHARP
from pipeline.data.split import Split
from pipeline.errors import DamagedError, UserError

log = logging.getLogger("era")
FETCHED = 4  # shards prefetched at once; their ranges are read one shard after another
LOOK_AHEAD = 4096  # positions within which shards are fetched by their first use
AGAIN = 60.0  # seconds between marks on the cached copies in use


class TrainLoader:
    """Yields this rank's share of every step from `start_step` to `steps`.

    Args:
        split: the data; needs sharp images.
        plan: the order.
        rank, world_size: the share, see `order.rank_slice`.
        workers: extra threads that cut crops; 0: the one background thread does it.
        prefetch: batches prepared in advance.
        skip_damaged: replace a damaged image by the next sound one, with a warning, instead of
            stopping. An outage is not damage: reads are retried for two minutes, then the
            iterator raises `StorageDown`.
        log_samples: compute crcs.
        pinned: batches in page-locked memory, from which a GPU copies while it computes.

    Attributes:
        skipped: by the sample's key, why it is not trained on; grows while the loader runs.
    """

    def __init__(
        self,
        split: Split,
        plan: OrderPlan,
        *,
        rank: int,
        world_size: int,
        start_step: int,
        steps: int,
        workers: int = 0,
        prefetch: int = 4,
        skip_damaged: bool = False,
        log_samples: bool = False,
        pinned: bool = False,
    ) -> None:
        self.split, self.plan = split, plan
        self.order = Order(plan, split.shard_counts, split.sizes)
        self.share = rank_slice(plan.global_batch, rank, world_size)
        self.start_step, self.steps = start_step, steps
        self.skip_damaged, self.log_samples = skip_damaged, log_samples
        self.pinned = pinned
        self.skipped: dict[str, str] = {}
        self._sharpness = lru_cache(maxsize=100_000)(self._read_sharpness)
        self._pool = ThreadPoolExecutor(workers) if workers else None
        self._queue: queue.Queue[Batch | BaseException | None] = queue.Queue(prefetch)
        self._stopping = threading.Event()
        self._ahead = _Ahead(split, self.order) if split.shards.remote else None
        self._thread = threading.Thread(target=self._work, name="era-loader", daemon=True)

    def __iter__(self) -> Iterator[Batch]:
        self._thread.start()
        while not self._stopping.is_set():
            item = self._queue.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                return
            yield item

    def stop(self) -> None:
        """End the iteration after the current batch."""
        self._stopping.set()

    def close(self) -> None:
        """Stop the threads."""
        self._stopping.set()
        while self._thread.is_alive():
            try:
                self._queue.get(timeout=0.05)
            except queue.Empty:
                continue
        if self._pool is not None:
            self._pool.shutdown()
        if self._ahead is not None:
            self._ahead.close()

    def batch(self, step: int) -> Batch:
        """Make this rank's share of a step."""
        first = step * self.plan.global_batch
        if self._ahead is not None:
            self._ahead.reach(first + self.share[0])
        sources = [self._source(first + p) for p in range(*self.share)]
        crops = [source.crop for source in sources]
        count, size = len(crops), crops[0].size
        shape = (count, size, size)
        blur, sharp = self._empty(*shape, 3), self._empty(*shape, 3)
        depths = self._empty(*shape).zero_() if self.split.has_radius else None
        images = [blur.numpy(), sharp.numpy()]
        radius = None if depths is None else depths.numpy()
        cuts = [(i, source, images, radius) for i, source in enumerate(sources)]
        known = list((self._pool.map if self._pool else map)(_cut, cuts))
        crcs = []
        if self.log_samples:
            crcs = [zlib.crc32(images[1][i], zlib.crc32(images[0][i])) for i in range(count)]
        return Batch(
            step=step,
            ids=[crop.id(self.split.key(crop.image)) for crop in crops],
            crcs=crcs,
            blur=blur,
            sharp=sharp,
            radius=depths,
            has_radius=torch.tensor(known),
            flips=torch.tensor([crop.flip for crop in crops]),
        )

    def _empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.uint16, pin_memory=self.pinned)

    def _work(self) -> None:
        try:
            for step in range(self.start_step, self.steps):
                self._put(self.batch(step))
                if self._stopping.is_set():
                    return
            self._put(None)
        except BaseException as error:  # raised by the iterator
            self._put(error)

    def _put(self, item: Batch | BaseException | None) -> None:
        while not self._stopping.is_set():
            with suppress(queue.Full):
                self._queue.put(item, timeout=0.2)
                return

    def _source(self, position: int) -> _Source:
        chosen = self.order.image(position)
        for offset in range(len(self.split) if self.skip_damaged else 1):
            image = (chosen + offset) % len(self.split)
            key = self.split.key(image)
            if key in self.skipped:
                continue
            try:
                opening = partial(self._open, position, image)
                return storage.retry_outages(opening, f"sample {key}", self._stopping)
            except DamagedError as error:
                if not self.skip_damaged:
                    raise
                self.skipped[key] = str(error)
                log.warning("sample skipped: %s", error)
        raise DamagedError(f"{self.split.url}: no sound sample is left; run `era verify`")

    def _open(self, position: int, image: int) -> _Source:
        names = (BLUR, SHARP, RADIUS) if self.split.has_radius else (BLUR, SHARP)
        members = [self.split.member(image, name) for name in names]
        return _Source(self.order.crop_of(position, image, self._sharpness(image)), members)

    def _read_sharpness(self, image: int) -> Table | None:
        if not self.plan.min_sharpness_quantile:
            return None
        values = self.split.meta(image).get("sharpness")
        return summed_area_table(values) if values else None


@dataclass(frozen=True)
class _Source:
    """A crop to be cut, and the arrays that it is cut from, kept open until then."""

    crop: Crop
    members: list[Image | None]


def _cut(job: tuple[int, _Source, list[Image], Image | None]) -> bool:
    """Copy a crop into its place in the batch; returns whether its radius is known."""
    index, source, images, radius = job
    crop = source.crop
    place = (slice(crop.top, crop.top + crop.size), slice(crop.left, crop.left + crop.size))
    for target, member in zip(images, source.members, strict=False):
        assert member is not None  # the manifest says so
        np.copyto(target[index], member[place])
    known = source.members[2] if radius is not None else None
    if known is None or radius is None:
        return False
    np.copyto(radius[index], known[place])
    return True


class _Ahead:
    """Prefetches the shards of the current window and the next one."""

    def __init__(self, split: Split, order: Order) -> None:
        self.split, self.order = split, order
        self.reached, self.said = (-1, -1), 0.0
        self.wanted: dict[int, None] = {}  # in the order of their first use
        self.pool = ThreadPoolExecutor(FETCHED, thread_name_prefix="era-fetch")

    def reach(self, position: int) -> None:
        """Report the position being read; a new window is fetched in the background."""
        window = self.order.window(position)
        is_new = window != self.reached
        if is_new:
            self.reached = window
            self.wanted = self._by_first_use(position, self._needed(*window))
        if is_new or time.monotonic() - self.said > AGAIN:
            self.said = time.monotonic()
            self.split.shards.hold(self.wanted)
        if is_new:
            for shard in list(self.wanted):
                self.pool.submit(self._fetch, shard)

    def _needed(self, epoch: int, number: int) -> list[int]:
        """Both windows if the cache can hold them, else the current one, else nothing."""
        wanted = self.order.window_shards(epoch, number)
        following = self.order.window_shards(epoch, number + 1)
        together = list(dict.fromkeys([*wanted, *following]))
        return next((s for s in (together, wanted) if self.split.shards.fits(s)), [])

    def _by_first_use(self, position: int, shards: list[int]) -> dict[int, None]:
        """The shards, those first whose samples come next."""
        epoch = position // self.order.per_epoch + 1
        near = range(position, min(position + LOOK_AHEAD, epoch * self.order.per_epoch))
        soon = dict.fromkeys(self.split.shard_of(self.order.image(p)) for p in near)
        wanted = dict.fromkeys(shards)
        return {**{shard: None for shard in soon if shard in wanted}, **wanted}

    def _fetch(self, shard: int) -> None:
        if shard in self.wanted:  # unless reading has gone on since
            with suppress(UserError):  # the reader meets it again and reports it
                self.split.shards.prefetch(shard)

    def close(self) -> None:
        """Finish the current downloads and cancel the others."""
        self.pool.shutdown(cancel_futures=True)
