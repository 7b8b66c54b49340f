"""The shards of a split that a process has open: mapped, checked once, and let go of in time."""

from __future__ import annotations

import threading
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


@dataclass
class Opened:
    """An open shard. All its memory goes when the last array on it does.

    Attributes:
        data: its bytes, a memory map.
        identity: of the mapped file; another one means that its bytes are no longer those checked.
        broken: (key, member) of what is damaged in it.
        views: arrays on the map by (index, member), checked once, then only looked up.
    """

    data: Image
    identity: Identity | None
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
        if not self.is_local:
            for number in shards:
                self.cache.touch(self.manifest.shards[number])
        with self._lock:
            kept = {n for n in shards if n in self._opened and not self._changed(n)}
            self._let_go([n for n in self._opened if n not in kept])

    def _open(self, shard: int) -> Opened:
        if shard in self._refused:
            raise DamagedError(self._refused[shard])
        described, url = self.manifest.shards[shard], self.where(shard)
        try:
            if self.is_local:
                opened = _open_local(storage.local_path(url), described, url)
            else:
                identity = self.cache.identity(described)
                data = self.cache.open(url, described)
                opened = Opened(data, identity or self.cache.identity(described))
        except DamagedError as error:
            self._refused[shard] = str(error)
            raise
        with self._lock:
            self._let_go(list(self._opened)[: max(0, len(self._opened) - MOST + 1)])
            if not self.is_local:  # what was evicted while it is mapped still takes its place
                self._let_go([n for n in self._opened if self._changed(n)])
            return self._opened.setdefault(shard, opened)

    def _changed(self, shard: int) -> bool:
        """Whether an open shard's file has been replaced, written to or removed."""
        described = self.manifest.shards[shard]
        now = (
            identity_of(storage.local_path(self.where(shard)))
            if self.is_local
            else self.cache.identity(described)
        )
        return now != self._opened[shard].identity

    def _let_go(self, shards: list[int]) -> None:
        for shard in shards:
            del self._opened[shard]


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
    if not broken:  # by an older manifest nobody can say which
        raise DamagedError(f"{url}: damaged: its sha256 is not the manifest's; preprocess again")
    return Opened(data, identity, broken)
