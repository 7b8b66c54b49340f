"""A node's copies of remote shards: downloaded once, checked, bounded, shared by all its ranks."""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from filelock import FileLock, Timeout

from pipeline import storage
from pipeline.arrays import Image
from pipeline.data.manifest import Shard
from pipeline.errors import DamagedError, UserError

GB = 10**9
REPORT = 30  # seconds between messages about a lock that is waited for
log = logging.getLogger("era")


def cache_folder(configured: str) -> Path:
    """The cache's folder: as configured, else $ERA_CACHE_DIR, else ~/.cache/era.

    A user without a home folder gets one below the folder for temporary files.
    """
    chosen = configured or os.environ.get("ERA_CACHE_DIR")
    if chosen:
        return storage.local_path(chosen) / "shards"
    try:
        return Path.home() / ".cache" / "era" / "shards"
    except RuntimeError:
        return Path(tempfile.gettempdir()) / f"era-cache-{os.getuid()}" / "shards"


class Identity(NamedTuple):
    """Of a file: inode, bytes, and time of the last change in ns."""

    inode: int
    size: int
    changed: int


class ShardCache:
    """Copies of shards, named by sha256, so that data sets with a common shard share its copy.

    An existing copy is opened without a lock: it was renamed into place when complete, and an open
    copy stays readable after its eviction. Eviction and downloads happen under one lock per node,
    which keeps the cache within its limit; the operating system releases the lock of a killed
    process, and the next one removes its temporary files.

    Args:
        folder: local; several jobs may use it at once.
        limit_gb: least recently used copies are evicted to stay within it.
    """

    def __init__(self, folder: Path, limit_gb: float) -> None:
        self.folder, self.limit = folder, int(limit_gb * GB)

    def open(self, url: str, shard: Shard) -> Image:
        """A shard's bytes as a memory map of its local copy, downloaded first where need be.

        Raises:
            DamagedError: if the shard has vanished or is not what the manifest says.
            StorageDown: if the storage does not answer.
            UserError: if the cache cannot hold it.
        """
        mapped = self._sound_copy(shard)
        if mapped is None:
            storage.check_writable(str(self.folder))
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._locked():
                mapped = self._sound_copy(shard)  # another process may have brought it
                if mapped is None:
                    mapped = self._download(url, shard)
        self.touch(shard)
        return mapped

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the cache's lock; while another process has it, say so every 30 seconds."""
        lock, waited = FileLock(self.folder / "cache.lock"), 0
        while True:
            with suppress(Timeout):
                lock.acquire(timeout=REPORT)
                break
            waited += REPORT
            log.warning(
                "%s: locked by another process for %d s; waiting until it has downloaded its shard"
                " (if that process is stopped, continue or end it)",
                lock.lock_file,
                waited,
            )
        try:
            yield
        finally:
            lock.release()

    def identity(self, shard: Shard) -> Identity | None:
        """What changes when the copy of a shard is written to; None if there is no copy."""
        return identity_of(self._path(shard))

    def touch(self, shard: Shard) -> None:
        """Mark a copy as in use: the time of its last access moves, the time of its change not."""
        path = self._path(shard)
        with suppress(FileNotFoundError):
            os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))

    def _sound_copy(self, shard: Shard) -> Image | None:
        """The copy, if it has its size and, looked at once in a process, its sha256."""
        path = self._path(shard)
        identity = identity_of(path)
        if identity is None or identity.size != shard.bytes:
            return None
        if sha256_of(path, identity) != shard.sha256:
            log.warning("%s: this cached copy has changed; it is fetched again", path)
            return None
        return map_file(path, shard.bytes)

    def _path(self, shard: Shard) -> Path:
        return self.folder / f"{shard.sha256}.tar"

    def _download(self, url: str, shard: Shard) -> Image:
        storage.remove_unfinished(str(self.folder))
        self._make_room(shard)
        if not storage.exists(url):
            raise DamagedError(f"{url}: this shard has vanished; preprocess again")
        size = storage.size(url)
        if size != shard.bytes:
            raise DamagedError(
                f"{url}: damaged: {size} bytes instead of {shard.bytes}; preprocess again"
            )
        path = self._path(shard)
        storage.download(url, path)
        mapped = self._sound_copy(shard)
        if mapped is None:
            path.unlink(missing_ok=True)
            raise DamagedError(
                f"{url}: damaged: its sha256 is not the manifest's; preprocess again"
            )
        return mapped

    def _make_room(self, shard: Shard) -> None:
        if shard.bytes > self.limit:
            raise UserError(
                f"cache.max_gb={self.limit / GB:g} is less than one shard ({shard.bytes / GB:.2f})"
            )
        copies = sorted(self.folder.glob("*.tar"), key=lambda path: path.stat().st_atime)
        used = sum(path.stat().st_size for path in copies)
        for oldest in copies:
            if used + shard.bytes <= self.limit:
                return
            used -= oldest.stat().st_size
            oldest.unlink()


def identity_of(path: Path) -> Identity | None:
    """What changes when a file is replaced or written to; None if there is none."""
    with suppress(FileNotFoundError):
        found = path.stat()
        return Identity(found.st_ino, found.st_size, found.st_mtime_ns)
    return None


@lru_cache(maxsize=100_000)
def sha256_of(path: Path, identity: Identity) -> str:
    """A file's sha256, read once in a process for as long as its identity is the same."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def map_file(path: Path, size: int) -> Image | None:
    """A file of this size as a memory map; None if there is none, or it has another size."""
    with suppress(FileNotFoundError), path.open("rb") as stream:
        if os.fstat(stream.fileno()).st_size == size:
            return np.asarray(np.memmap(stream, np.uint8, "r"))
    return None
