"""A split that is open for reading: random access to its samples through memory maps."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from typing import Any

import numpy as np

from pipeline import storage
from pipeline.data.cache import ShardCache, cache_folder
from pipeline.data.manifest import Manifest, SampleEntry, load_manifest
from pipeline.data.shards import BLUR, META, RADIUS, SHARP, Sample, view_member
from pipeline.errors import UserError

Image = np.ndarray[Any, Any]
OPEN_SHARDS, OPEN_VIEWS = 256, 50_000  # memory maps and members of them held at once


def open_split(url: str, cache_dir: str = "", cache_gb: float = 100.0) -> Split:
    """Open a preprocessed split, local or on S3 (its shards are then copied to a cache).

    Raises:
        UserError: if there is no manifest, or an empty one.
    """
    manifest, digest = load_manifest(url)
    if not manifest.samples:
        raise UserError(f"{url}: the split holds no sample")
    return Split(url, manifest, digest, ShardCache(cache_folder(cache_dir), cache_gb))


class Split:
    """The samples of a split, numbered through its shards; may be read by several threads."""

    def __init__(self, url: str, manifest: Manifest, digest: str, cache: ShardCache) -> None:
        self.url, self.manifest, self.manifest_sha256 = url, manifest, digest
        self._cache = cache
        self._entries: list[tuple[int, SampleEntry]] = [
            (index, entry) for index, shard in enumerate(manifest.shards) for entry in shard.samples
        ]
        self._maps: OrderedDict[int, Image] = OrderedDict()
        self._views: dict[tuple[int, str], Image] = {}  # checked once, then only looked up
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def keys(self) -> list[str]:
        """The samples' keys."""
        return [entry.key for _, entry in self._entries]

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
        return [(entry.height, entry.width) for _, entry in self._entries]

    @property
    def shard_counts(self) -> list[int]:
        """Samples per shard."""
        return [len(shard.samples) for shard in self.manifest.shards]

    def key(self, index: int) -> str:
        """A sample's key."""
        return self._entries[index][1].key

    def member(self, index: int, name: str) -> Image | None:
        """A member as an array on the memory map, not copied; None where the sample lacks it."""
        key = index, name
        view = self._views.get(key)
        if view is None:
            shard, entry = self._entries[index]
            if name not in entry.members:
                return None
            view = view_member(self._map(shard), entry, name, self._where(shard))
            if len(self._views) >= OPEN_VIEWS:
                self._views.clear()
            self._views[key] = view
        return view

    def meta(self, index: int) -> dict[str, Any]:
        """The content of a sample's KEY.json."""
        shard, entry = self._entries[index]
        offset, length = entry.members[META]
        raw = self._map(shard)[offset : offset + length].tobytes()
        try:
            meta: dict[str, Any] = json.loads(raw)
        except ValueError:
            raise UserError(f"{self._where(shard)}: sample {entry.key}: json is damaged") from None
        return meta

    def load(self, index: int) -> Sample:
        """A whole sample, copied into memory."""
        blur, sharp, radius = (self.member(index, name) for name in (BLUR, SHARP, RADIUS))
        assert blur is not None  # every sample has it: view_member would have refused
        return Sample(
            self.key(index),
            blur.copy(),
            None if sharp is None else sharp.copy(),
            None if radius is None else radius.copy(),
            self.meta(index),
        )

    @property
    def is_remote(self) -> bool:
        """Whether shards are copied to the cache before they are read."""
        return not storage.is_local(self.url)

    def fits_cache(self, shards: list[int]) -> bool:
        """Whether the cache can hold these shards at once."""
        return sum(self.manifest.shards[shard].bytes for shard in shards) <= self._cache.limit

    def prepare(self, shard: int) -> None:
        """Make sure that a shard is at hand, downloading it where needed."""
        self._map(shard)

    def _where(self, shard: int) -> str:
        return storage.join(self.url, self.manifest.shards[shard].name)

    def _map(self, shard: int) -> Image:
        with self._lock:
            if shard in self._maps:
                self._maps.move_to_end(shard)
                return self._maps[shard]
        mapped = self._open(shard)
        with self._lock:
            self._maps[shard] = mapped
            while len(self._maps) > OPEN_SHARDS:
                self._maps.popitem(last=False)
        return mapped

    def _open(self, shard: int) -> Image:
        described, url = self.manifest.shards[shard], self._where(shard)
        path = storage.local_path(url)
        if not storage.is_local(url):
            path = self._cache.fetch(url, described)
        elif not path.is_file():
            raise UserError(f"{url}: this shard has vanished; preprocess again")
        if path.stat().st_size != described.bytes:
            raise UserError(
                f"{url}: damaged: {path.stat().st_size} bytes instead of {described.bytes}; "
                "preprocess again"
            )
        return np.asarray(np.memmap(path, np.uint8, "r"))
