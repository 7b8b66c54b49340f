"""Locks shared by the jobs of a node; a hung process cannot hold them forever."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from pipeline.storage.entry import UNFINISHED

REPORT = 30.0  # seconds between messages about a lock that is waited for
STALLED = 120.0  # seconds without a byte after which the process of a download counts as hung
log = logging.getLogger("era")


class NodeLocks:
    """The locks in a cache's folder, and the files `.SHA256.TOKEN.era-part` of its downloads.

    The operating system releases the locks of a killed process; the next one removes its files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextmanager
    def of_shard(self, sha256: str) -> Iterator[bool]:
        """Hold a shard's lock; yields False if it was ignored because its holder hangs."""
        with self._held(self._lock(sha256), f".{sha256}.*{UNFINISHED}") as owned:
            try:
                yield owned
            finally:
                if owned:
                    self._lock(sha256).unlink(missing_ok=True)  # a process that waits makes another

    @contextmanager
    def of_folder(self) -> Iterator[bool]:
        """Hold the lock under which space is reserved and copies are evicted: never for long."""
        with self._held(self.folder / "cache.lock", "") as owned:
            yield owned

    def is_held(self, sha256: str) -> bool:
        """Whether another process, or thread, holds a shard's lock."""
        if not self._lock(sha256).exists():
            return False
        with suppress(Timeout), FileLock(self._lock(sha256), timeout=0):
            return False
        return True

    def remove_dead(self, own: str) -> None:
        """Remove the files of downloads whose process is gone.

        Args:
            own: sha256 of the shard whose lock is held here.
        """
        for part in self._parts(f".*{UNFINISHED}"):
            sha256 = part.name[1:65]
            if sha256 == own:
                part.unlink(missing_ok=True)
                continue
            with suppress(Timeout), FileLock(self._lock(sha256), timeout=0):
                part.unlink(missing_ok=True)
                self._lock(sha256).unlink(missing_ok=True)

    def coming_bytes(self) -> int:
        """Bytes that the downloads in progress will take."""
        parts = self._parts(f".*{UNFINISHED}")
        return sum(_size(part) for part in parts if _quiet_for(part) < STALLED)

    def _parts(self, pattern: str) -> list[Path]:
        return list(self.folder.glob(pattern))

    def _lock(self, sha256: str) -> Path:
        return self.folder / f".{sha256}.lock"

    @contextmanager
    def _held(self, path: Path, written: str) -> Iterator[bool]:
        """Hold a lock, or ignore it when nothing has been written for too long.

        Args:
            written: pattern of the files whose writing shows that the holder is alive.
        """
        lock, began, owned = FileLock(path), time.monotonic(), False
        while not owned:
            with suppress(Timeout):
                lock.acquire(timeout=REPORT)
                owned = True
                break
            waited = time.monotonic() - began
            quiet = min([waited, *map(_quiet_for, self._parts(written) if written else [])])
            if quiet >= STALLED:
                log.warning("%s: nothing has moved for %d s; going on without it", path, quiet)
                break
            log.warning(
                "%s: locked by another process for %d s; waiting until it has downloaded its shard"
                " (if that process is stopped, continue or end it)",
                path,
                waited,
            )
        try:
            yield owned
        finally:
            if owned:
                lock.release()


def _quiet_for(path: Path) -> float:
    """Seconds since a file was written to; 0 if it is gone."""
    with suppress(FileNotFoundError):
        return max(0.0, time.time() - path.stat().st_mtime)
    return 0.0


def _size(path: Path) -> int:
    with suppress(FileNotFoundError):
        return path.stat().st_size
    return 0
