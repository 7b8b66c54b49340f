"""A remote manifest, read from the store once per node: its ranks share a copy in the cache."""

from __future__ import annotations

import hashlib
import logging
from contextlib import suppress
from pathlib import Path

from pipeline import storage
from pipeline.data.cache import ShardCache
from pipeline.data.manifest import MAX_BYTES, read_manifest
from pipeline.storage.local import explained

DIGEST = 64  # characters of sha256 at the end of a copy
log = logging.getLogger("era")


class SharedManifests:
    """Copies of manifests, named by URL, size and entity tag: a changed manifest is another copy.

    Where a store has no entity tags, and where the cache cannot hold it, each rank reads its own.
    """

    def __init__(self, cache: ShardCache) -> None:
        self.cache = cache

    def read(self, url: str) -> tuple[bytes, str] | None:
        """A manifest's text and its sha256; None if it is missing."""
        found = storage.version(url)
        if found is None:
            return None
        if not found.tag or found.size > min(MAX_BYTES, self.cache.limit - DIGEST):
            return read_manifest(url)
        name = hashlib.sha256(f"{url}\n{found.size}\n{found.tag}".encode()).hexdigest()
        path = self.cache.folder / f"{name}.manifest"
        copy = _sound_copy(path)
        if copy is None:
            self.cache.prepare()
            with self.cache.locks.of_shard(name) as owned:
                copy = _sound_copy(path) or self._download(url, found, path, owned)
        self.cache.touch(path)
        return copy or read_manifest(url)

    def _download(
        self, url: str, found: storage.Version, path: Path, owned: bool
    ) -> tuple[bytes, str] | None:
        """Make a copy; None if the manifest was replaced meanwhile."""
        part = self.cache.reserve(path.stem, found.size + DIGEST, owned)
        try:
            digest = storage.begin_download(url, found.size, part)()
            if storage.version(url) != found:
                return None
            with explained(path), suppress(FileNotFoundError):  # removed while this was suspended
                with part.open("r+b") as stream:
                    stream.seek(found.size)
                    stream.write(digest.encode())
                part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        return _sound_copy(path)


def _sound_copy(path: Path) -> tuple[bytes, str] | None:
    """A copy's text and its sha256, if it is the one noted at its end; None if there is no copy."""
    try:
        with path.open("rb") as stream:
            data = stream.read(path.stat().st_size - DIGEST)
            noted = stream.read()
    except (FileNotFoundError, ValueError):
        return None
    digest = hashlib.sha256(data).hexdigest()
    if digest.encode() != noted:
        log.warning("%s: this cached copy has changed; it is fetched again", path)
        return None
    return data, digest
