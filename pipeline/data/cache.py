"""A node's copies of remote shards: downloaded once, checked, bounded, shared by all its ranks."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from filelock import FileLock

from pipeline import storage
from pipeline.data.manifest import Shard
from pipeline.errors import UserError

GB = 10**9


def cache_folder(configured: str) -> Path:
    """The cache's folder: as configured, else $ERA_CACHE_DIR, else ~/.cache/era."""
    chosen = configured or os.environ.get("ERA_CACHE_DIR") or str(Path.home() / ".cache" / "era")
    return Path(chosen).expanduser() / "shards"


class ShardCache:
    """Shards by their sha256, so that data sets that share one share the copy.

    Args:
        folder: local; several jobs may use it at once.
        limit_gb: when it would be exceeded, the copies unused for longest go.
    """

    def __init__(self, folder: Path, limit_gb: float) -> None:
        self.folder, self.limit = folder, int(limit_gb * GB)

    def fetch(self, url: str, shard: Shard) -> Path:
        """The local copy of a shard, downloaded first where it is not there yet.

        Raises:
            UserError: if the shard is missing, damaged, or larger than the cache may be.
        """
        path = self.folder / f"{shard.sha256}.tar"
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):  # the ranks of a node: one downloads, all use
            if not path.exists() or path.stat().st_size != shard.bytes:
                self._make_room(shard)
                storage.download(url, path)
                self._check(url, path, shard)
            os.utime(path)
        return path

    def _check(self, url: str, path: Path, shard: Shard) -> None:
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        if digest != shard.sha256:
            path.unlink()
            raise UserError(f"{url}: damaged: its sha256 is not the manifest's; preprocess again")

    def _make_room(self, shard: Shard) -> None:
        if shard.bytes > self.limit:
            raise UserError(
                f"cache.max_gb={self.limit / GB:g} is less than one shard ({shard.bytes / GB:.2f})"
            )
        with FileLock(self.folder / "room.lock"):
            copies = sorted(self.folder.glob("*.tar"), key=lambda path: path.stat().st_mtime)
            used = sum(path.stat().st_size for path in copies)
            while copies and used + shard.bytes > self.limit:
                oldest = copies.pop(0)
                used -= oldest.stat().st_size
                oldest.unlink(missing_ok=True)  # whoever has it mapped keeps it until he lets go
