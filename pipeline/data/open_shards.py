"""The shards that a process has open: memory-mapped, checked when opened and when they change."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from pipeline import storage
from pipeline.arrays import Image
from pipeline.data.cache import Identity, ShardCache, identity_of, map_file, sha256_of
from pipeline.data.manifest import Manifest, Shard
from pipeline.data.shards import changed_members
from pipeline.errors import DamagedError

MOST = 1024  # shards open at once
LOOK_AGAIN = 256  # uses after which a shard's file is compared again


@dataclass
class Opened:
    """An open shard. Its memory is released with the last array on it.

    Attributes:
        data: its bytes, a memory map.
        identity: the mapped file's; with another one, its bytes are no longer those checked.
        uses: how often it was asked for.
        broken: (key, member) pairs that are damaged.
        views: arrays on the map by (index, member), checked once, then only looked up.
    """

    data: Image
    identity: Identity | None
    uses: int = 0
    broken: set[tuple[str, str]] = field(default_factory=set)
    views: dict[tuple[int, str], Image] = field(default_factory=dict)


class Shards(ABC):
    """The open shards of a split, by number; may be used by several threads."""

    remote = False  # whether shards are copied to a cache before they are read

    def __init__(self, url: str, manifest: Manifest) -> None:
        self.url, self.manifest = url, manifest
        self._opened: dict[int, Opened] = {}
        self._refused: dict[int, str] = {}  # a damaged shard is read once
        self._lock = threading.Lock()
        self._opening: dict[int, threading.Lock] = {}

    def where(self, shard: int) -> str:
        """A shard's URL."""
        return storage.join(self.url, self.manifest.shards[shard].name)

    def get(self, shard: int) -> Opened:
        """A shard, opened on first use, and again when its file has changed.

        Raises:
            DamagedError: if it is damaged or has vanished.
        """
        opened = self._opened.get(shard)
        if opened is None:
            return self._open(shard)
        opened.uses += 1
        if opened.uses % LOOK_AGAIN == 0:
            found = self._identity(shard)
            if found is not None and found != opened.identity:
                with self._lock:
                    self._opened.pop(shard, None)
                return self._open(shard)
        return opened

    def fits(self, shards: Collection[int]) -> bool:
        """Whether these shards can be kept at once."""
        return True

    def hold(self, shards: Collection[int]) -> None:
        """Keep these shards available; close all others, and those whose file has changed."""
        with self._lock:
            self._close([n for n in self._opened if n not in shards or self._changed(n)])

    @abstractmethod
    def _load(self, shard: Shard, url: str) -> Opened:
        """Map a shard and check it."""

    @abstractmethod
    def _identity(self, shard: int) -> Identity | None:
        """The identity of a shard's local file."""

    def prefetch(self, shard: int) -> None:
        """Open a shard that will be needed, unless another process is already downloading it."""
        if shard not in self._opened:
            self.get(shard)

    def _open(self, shard: int) -> Opened:
        with self._opening.setdefault(shard, threading.Lock()):
            opened = self._opened.get(shard)
            return opened or self._open_once(shard)

    def _open_once(self, shard: int) -> Opened:
        if shard in self._refused:
            raise DamagedError(self._refused[shard])
        try:
            opened = self._load(self.manifest.shards[shard], self.where(shard))
        except DamagedError as error:
            self._refused[shard] = str(error)
            raise
        with self._lock:
            self._close(list(self._opened)[: max(0, len(self._opened) - MOST + 1)])
            # An evicted copy that is still mapped takes up disk space.
            self._close([n for n in self._opened if self.remote and self._changed(n)])
            return self._opened.setdefault(shard, opened)

    def _changed(self, shard: int) -> bool:
        """Whether an open shard's file has been replaced, written to or removed."""
        return self._identity(shard) != self._opened[shard].identity

    def _close(self, shards: list[int]) -> None:
        for shard in shards:
            del self._opened[shard]


class LocalShards(Shards):
    """Shards on this machine, mapped where they are."""

    def _load(self, shard: Shard, url: str) -> Opened:
        return _open_local(storage.local_path(url), shard, url)

    def _identity(self, shard: int) -> Identity | None:
        return identity_of(storage.local_path(self.where(shard)))


class CachedShards(Shards):
    """Shards in a bucket, mapped as copies in this node's cache."""

    remote = True

    def __init__(self, url: str, manifest: Manifest, cache: ShardCache) -> None:
        super().__init__(url, manifest)
        self.cache = cache

    def fits(self, shards: Collection[int]) -> bool:
        return sum(self.manifest.shards[shard].bytes for shard in shards) <= self.cache.limit

    def prefetch(self, shard: int) -> None:
        if not self.cache.is_coming(self.manifest.shards[shard]):
            super().prefetch(shard)

    def hold(self, shards: Collection[int]) -> None:
        for shard in shards:
            self.cache.touch(self.cache.path(self.manifest.shards[shard]))
        super().hold(shards)

    def _load(self, shard: Shard, url: str) -> Opened:
        identity = self.cache.identity(shard)
        data = self.cache.open(url, shard)
        return Opened(data, identity or self.cache.identity(shard))

    def _identity(self, shard: int) -> Identity | None:
        return self.cache.identity(self.manifest.shards[shard])


def _open_local(path: Path, shard: Shard, url: str) -> Opened:
    identity = identity_of(path) if path.is_file() else None
    if identity is None:
        raise DamagedError(f"{url}: this shard has vanished; preprocess again")
    data = map_file(path, shard.bytes)
    if data is None:
        raise DamagedError(
            f"{url}: damaged: {identity.size} bytes instead of {shard.bytes}; preprocess again"
        )
    if sha256_of(path, identity) == shard.sha256:
        return Opened(data, identity)
    broken = {(entry.key, name) for entry in shard.samples for name in changed_members(data, entry)}
    if not broken:  # an older manifest without crc32 cannot tell which
        raise DamagedError(f"{url}: damaged: its sha256 is not the manifest's; preprocess again")
    return Opened(data, identity, broken=broken)
