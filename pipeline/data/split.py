"""A split that is open for reading: random access to its samples through memory maps."""

from __future__ import annotations

import bisect
import itertools
from functools import lru_cache
from typing import Any

from pipeline import storage
from pipeline.arrays import Image
from pipeline.data.cache import ShardCache, cache_folder
from pipeline.data.entries import SampleEntry, sizes_of
from pipeline.data.manifest import load_manifest, read_manifest
from pipeline.data.open_shards import CachedShards, LocalShards, Shards
from pipeline.data.shards import (
    BLUR,
    META,
    RADIUS,
    SHARP,
    Sample,
    damaged_member,
    read_meta,
    view_member,
)
from pipeline.data.shared_manifest import SharedManifests
from pipeline.errors import UserError

ENTRIES = 16_384  # of samples used last that are kept as objects


def open_split(url: str, cache_dir: str = "", cache_gb: float = 100.0) -> Split:
    """Open a preprocessed split, local or on S3 (its shards are then copied to the cache).

    Raises:
        UserError: if there is no manifest, or it lists no sample.
    """
    local = storage.is_local(url)
    cache = ShardCache(cache_folder(cache_dir), cache_gb)
    manifest, digest = load_manifest(url, read_manifest if local else SharedManifests(cache).read)
    if not manifest.samples:
        raise UserError(f"{url}: the split holds no sample")
    return Split(
        LocalShards(url, manifest) if local else CachedShards(url, manifest, cache), digest
    )


class Split:
    """The samples of a split, numbered through its shards; may be read by several threads."""

    def __init__(self, shards: Shards, manifest_sha256: str) -> None:
        self.shards, self.manifest_sha256 = shards, manifest_sha256
        self.url, manifest = shards.url, shards.manifest
        self.manifest = manifest
        self._starts = [0, *itertools.accumulate(self.shard_counts)]
        self._entry = lru_cache(maxsize=ENTRIES)(self._find_entry)

    def __len__(self) -> int:
        return self._starts[-1]

    @property
    def keys(self) -> list[str]:
        """The samples' keys."""
        return [entry.key for shard in self.manifest.shards for entry in shard.samples]

    @property
    def has_sharp(self) -> bool:
        """Whether every sample has its sharp image."""
        return self.manifest.sharp

    @property
    def has_radius(self) -> bool:
        """Whether true blur radii are there."""
        return self.manifest.radius

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """(height, width) of every sample."""
        known: dict[tuple[int, int], tuple[int, int]] = {}  # equal ones are one object
        return [
            known.setdefault(size, size)
            for shard in self.manifest.shards
            for size in sizes_of(shard.samples)
        ]

    @property
    def shard_counts(self) -> list[int]:
        """Samples per shard."""
        return [len(shard.samples) for shard in self.manifest.shards]

    def key(self, index: int) -> str:
        """A sample's key."""
        return self._entry(index)[1].key

    def shard_of(self, index: int) -> int:
        """The number of the shard that a sample is in."""
        return bisect.bisect_right(self._starts, index) - 1

    def member(self, index: int, name: str) -> Image | None:
        """A member as an array on the memory map, not copied; None where the sample lacks it.

        Raises:
            DamagedError: if it, or its whole shard, is damaged or has vanished.
            StorageDown: if the storage does not answer.
        """
        shard, entry = self._entry(index)
        if name not in entry.members:
            return None
        opened = self.shards.get(shard)
        view = opened.views.get((index, name))
        if view is None:
            if (entry.key, name) in opened.broken:
                raise damaged_member(self.shards.where(shard), entry, name)
            view = view_member(opened.data, entry, name, self.shards.where(shard))
            opened.views[index, name] = view
        return view

    def meta(self, index: int) -> dict[str, Any]:
        """The content of a sample's KEY.json."""
        shard, entry = self._entry(index)
        opened = self.shards.get(shard)
        if (entry.key, META) in opened.broken:
            raise damaged_member(self.shards.where(shard), entry, META)
        return read_meta(opened.data, entry, self.shards.where(shard))

    def _find_entry(self, index: int) -> tuple[int, SampleEntry]:
        shard = self.shard_of(index)
        return shard, self.manifest.shards[shard].samples[index - self._starts[shard]]

    def load(self, index: int) -> Sample:
        """A whole sample, copied into memory; retried through outages of up to two minutes."""
        return storage.retry_outages(lambda: self._load(index), f"sample {self.key(index)}")

    def _load(self, index: int) -> Sample:
        blur, sharp, radius = (self.member(index, name) for name in (BLUR, SHARP, RADIUS))
        assert blur is not None  # every sample has it: view_member would have refused
        return Sample(
            self.key(index),
            blur.copy(),
            None if sharp is None else sharp.copy(),
            None if radius is None else radius.copy(),
            self.meta(index),
        )
