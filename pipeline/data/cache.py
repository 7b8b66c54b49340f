"""A node's copies of remote shards: downloaded once, checked, bounded, shared by all its ranks."""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import tempfile
import threading
import time
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline import storage
from pipeline.arrays import Image
from pipeline.data.manifest import Shard
from pipeline.data.node_locks import REPORT, NodeLocks
from pipeline.errors import DamagedError, StorageDown, UserError
from pipeline.storage.entry import UNFINISHED
from pipeline.storage.local import allocate

GB = 10**9
log = logging.getLogger("era")


def cache_folder(configured: str) -> Path:
    """The cache's folder: as configured, else $ERA_CACHE_DIR, else ~/.cache/era.

    A user without a home folder gets one in the folder for temporary files.
    """
    chosen = configured or os.environ.get("ERA_CACHE_DIR")
    if chosen:
        return storage.local_path(chosen) / "shards"
    try:
        return Path.home() / ".cache" / "era" / "shards"
    except RuntimeError:
        return Path(tempfile.gettempdir()) / f"era-cache-{os.getuid()}" / "shards"


class Identity(NamedTuple):
    """A file's inode, bytes, and time of the last change in ns."""

    inode: int
    size: int
    changed: int


class ShardCache:
    """Copies of shards, named by sha256, so that data sets with a common shard share its copy.

    An existing copy is opened without a lock: it was renamed into place when complete, and an open
    copy stays readable after its eviction. A download holds the lock of its shard (`NodeLocks`),
    so that several shards come at once and none of them twice. Its file has its full size from the
    start, so that the space it will take is counted; what is evicted is chosen under one lock.

    Args:
        folder: local; several jobs may use it at once.
        limit_gb: least recently used copies are evicted to stay within it.
    """

    def __init__(self, folder: Path, limit_gb: float) -> None:
        self.folder, self.limit = folder, int(limit_gb * GB)
        self.locks = NodeLocks(folder)
        self._beginning = threading.Lock()  # downloads complete in the order of the requests

    def open(self, url: str, shard: Shard) -> Image:
        """A shard's bytes as a memory map of its local copy, downloaded first where need be.

        Raises:
            DamagedError: if the shard has vanished or is not what the manifest says.
            StorageDown: if the storage does not answer.
            UserError: if the cache cannot hold it.
        """
        mapped = self._sound_copy(shard)
        if mapped is None:
            self.prepare()
            with self.locks.of_shard(shard.sha256) as owned:
                mapped = self._sound_copy(shard)  # another process may have brought it
                if mapped is None:
                    mapped = self._brought(url, shard, owned)
        self.touch(self.path(shard))
        return mapped

    def prepare(self) -> None:
        """Create the folder.

        Raises:
            UserError: if it cannot be written to.
        """
        storage.check_writable(str(self.folder))
        self.folder.mkdir(parents=True, exist_ok=True)

    def is_coming(self, shard: Shard) -> bool:
        """Whether a process of this node is downloading a shard."""
        return self.locks.is_held(shard.sha256)

    def identity(self, shard: Shard) -> Identity | None:
        """What changes when the copy of a shard is written to; None if there is no copy."""
        return identity_of(self.path(shard))

    def touch(self, path: Path) -> None:
        """Mark a copy as in use: set the time of its last access, and keep that of its change."""
        with suppress(OSError):  # evicted, another user's, or on a volume that is only read
            os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))

    def _sound_copy(self, shard: Shard) -> Image | None:
        """The copy, if its size and its sha256, which is checked once per process, are right."""
        path = self.path(shard)
        identity = identity_of(path)
        if identity is None or identity.size != shard.bytes:
            return None
        try:
            digest = sha256_of(path, identity)
        except FileNotFoundError:  # another process has just evicted it
            return None
        if digest != shard.sha256:
            log.warning("%s: this cached copy has changed; it is fetched again", path)
            return None
        return map_file(path, shard.bytes)

    def path(self, shard: Shard) -> Path:
        """Where the copy of a shard is, or will be."""
        return self.folder / f"{shard.sha256}.tar"

    def _brought(self, url: str, shard: Shard, owned: bool) -> Image:
        mapped = self._download(url, shard, owned)
        if mapped is None:
            log.warning("%s: arrived damaged; it is fetched once more", url)
            mapped = self._download(url, shard, owned)
        if mapped is None:
            raise DamagedError(
                f"{url}: damaged: its sha256 is not the manifest's; preprocess again"
            )
        return mapped

    def _download(self, url: str, shard: Shard, owned: bool) -> Image | None:
        """None if what arrived has another sha256: the object's fault, or its way's."""
        path = self.path(shard)
        with self._beginning:
            _require_whole(url, shard)
            part = self.reserve(shard.sha256, shard.bytes, owned)
            finish = storage.begin_download(url, shard.bytes, part)
        try:
            digest = finish()
            if digest != shard.sha256:
                return None
            remember_sha256(part, path, digest)
            with suppress(FileNotFoundError):  # removed while this process was suspended
                part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        mapped = self._sound_copy(shard)
        if mapped is None:
            raise StorageDown(f"{path}: removed by another process while it was downloaded")
        return mapped

    def reserve(self, name: str, size: int, owned: bool) -> Path:
        """Create a file of `size` bytes, as soon as there is room besides other downloads.

        Args:
            name: sha256 of what is downloaded, or of its name. owned: whether its lock is held.
        """
        if size > self.limit:
            raise UserError(
                f"cache.max_gb={self.limit / GB:g} is less than one shard ({size / GB:.2f})"
            )
        part = self.folder / f".{name}.{secrets.token_hex(4)}{UNFINISHED}"
        said = time.monotonic()
        while True:
            with self.locks.of_folder():
                self.locks.remove_dead(name if owned else "")
                if self._make_room(size):
                    allocate(part, size)
                    return part
            if time.monotonic() - said > REPORT:
                said = time.monotonic()
                log.warning("%s: full of other downloads; waiting until one has ended", self.folder)
            time.sleep(0.2)  # until another download has become a copy, which can be evicted

    def _make_room(self, size: int) -> bool:
        coming = self.locks.coming_bytes()  # read first: one that ends now is counted twice
        found = [*self.folder.glob("*.tar"), *self.folder.glob("*.manifest")]
        copies = sorted(found, key=lambda path: path.stat().st_atime)
        used = sum(path.stat().st_size for path in copies) + coming
        for oldest in copies:
            if used + size <= self.limit:
                break
            used -= oldest.stat().st_size
            oldest.unlink()
        return used + size <= self.limit


def _require_whole(url: str, shard: Shard) -> None:
    try:
        size = storage.size(url)
    except StorageDown:
        raise
    except UserError:
        if storage.exists(url):
            raise
        raise DamagedError(f"{url}: this shard has vanished; preprocess again") from None
    if size != shard.bytes:
        raise DamagedError(
            f"{url}: damaged: {size} bytes instead of {shard.bytes}; preprocess again"
        )


def identity_of(path: Path) -> Identity | None:
    """What changes when a file is replaced or written to; None if there is none."""
    with suppress(FileNotFoundError):
        found = path.stat()
        return Identity(found.st_ino, found.st_size, found.st_mtime_ns)
    return None


_arrived: dict[Identity, str] = {}  # digests of files that were hashed while they were written


@lru_cache(maxsize=100_000)
def sha256_of(path: Path, identity: Identity) -> str:
    """A file's sha256, read once in a process for as long as its identity is the same."""
    if digest := _arrived.pop(identity, ""):
        return digest
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def remember_sha256(part: Path, path: Path, digest: str) -> None:
    """Note the digest of a file that is about to be renamed to `path`, instead of reading it."""
    identity = identity_of(part)
    if identity is not None:
        _arrived[identity] = digest
        sha256_of(path, identity)


def map_file(path: Path, size: int) -> Image | None:
    """A file of this size as a memory map; None if there is none, or it has another size."""
    with suppress(FileNotFoundError), path.open("rb") as stream:
        if os.fstat(stream.fileno()).st_size == size:
            return np.asarray(np.memmap(stream, np.uint8, "r"))
    return None
