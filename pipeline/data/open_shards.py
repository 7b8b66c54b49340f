"""The shards of a split that a process has open: mapped, checked once, and let go of in time."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import storage
from pipeline.data.cache import ShardCache, map_file
from pipeline.data.manifest import Manifest, Shard
from pipeline.data.shards import changed_members
from pipeline.errors import DamagedError

Image = np.ndarray[Any, Any]
MOST = 1024  # shards open at once


@dataclass
class Opened:
    """An open shard. All its memory goes when the last array on it does.

    Attributes:
        data: its bytes, a memory map.
        broken: (key, member) of what is damaged in it.
        views: arrays on the map by (index, member), checked once, then only looked up.
    """

    data: Image
    broken: set[tuple[str, str]] = field(default_factory=set)
    views: dict[tuple[int, str], Image] = field(default_factory=dict)


class OpenShards:
    """The open shards of a split, by their number; may be used by several threads."""

    def __init__(self, url: str, manifest: Manifest, cache: ShardCache) -> None:
        self.url, self.manifest, self.cache = url, manifest, cache
        self.is_local = storage.is_local(url)
        self._opened: dict[int, Opened] = {}
        self._refused: dict[int, str] = {}  # damage stays: it is looked for once
        self._lock = threading.Lock()

    def where(self, shard: int) -> str:
        """A shard's URL."""
        return storage.join(self.url, self.manifest.shards[shard].name)

    def get(self, shard: int) -> Opened:
        """A shard, opened first where need be.

        Raises:
            DamagedError: if it is damaged or has vanished.
        """
        opened = self._opened.get(shard)
        return self._open(shard) if opened is None else opened

    def hold(self, shards: Collection[int]) -> None:
        """Let the cache keep these for longest; let go of all others, and of evicted ones."""
        kept = {n for n in shards if self.cache.touch(self.manifest.shards[n])}
        with self._lock:
            self._let_go([n for n in self._opened if n not in kept])

    def _open(self, shard: int) -> Opened:
        if shard in self._refused:
            raise DamagedError(self._refused[shard])
        described, url = self.manifest.shards[shard], self.where(shard)
        try:
            if self.is_local:
                opened = _open_local(storage.local_path(url), described, url)
            else:
                opened = Opened(self.cache.open(url, described))
        except DamagedError as error:
            self._refused[shard] = str(error)
            raise
        with self._lock:
            self._let_go(list(self._opened)[: max(0, len(self._opened) - MOST + 1)])
            if not self.is_local:  # what was evicted while it is mapped still takes its place
                shards = self.manifest.shards
                self._let_go([n for n in self._opened if not self.cache.has(shards[n])])
            return self._opened.setdefault(shard, opened)

    def _let_go(self, shards: list[int]) -> None:
        for shard in shards:
            del self._opened[shard]


def _open_local(path: Path, shard: Shard, url: str) -> Opened:
    if not path.is_file():
        raise DamagedError(f"{url}: this shard has vanished; preprocess again")
    found = path.stat()
    data = map_file(path, shard.bytes)
    if data is None:
        raise DamagedError(
            f"{url}: damaged: {found.st_size} bytes instead of {shard.bytes}; preprocess again"
        )
    if _sha256(path, found.st_size, found.st_mtime_ns) == shard.sha256:
        return Opened(data)
    broken = {(entry.key, name) for entry in shard.samples for name in changed_members(data, entry)}
    if not broken:  # by an older manifest nobody can say which
        raise DamagedError(f"{url}: damaged: its sha256 is not the manifest's; preprocess again")
    return Opened(data, broken)


@lru_cache(maxsize=100_000)
def _sha256(path: Path, size: int, changed: int) -> str:
    """A file's sha256, once for a process; its size and time are there to tell when it changed."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
