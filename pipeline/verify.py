"""`era verify`: is every shard and every sample what its manifest promises?"""

from __future__ import annotations

import hashlib
import logging
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import storage
from pipeline.arrays import Image
from pipeline.data.entries import SampleEntry
from pipeline.data.manifest import NAME, Shard, load_manifest
from pipeline.data.shards import (
    HEADER,
    META,
    array_start,
    changed_members,
    damage,
    damaged_member,
    read_meta,
    view_member,
)
from pipeline.errors import DamagedError, UserError
from pipeline.parallel_map import parallel_map
from pipeline.progress import track

log = logging.getLogger("era")
TAR_BLOCK = tarfile.BLOCKSIZE


@dataclass(frozen=True)
class _Job:
    url: str
    shard: Shard
    quick: bool


def verify(url: str, quick: bool = False) -> dict[str, Any]:
    """Check a split, or every split of a destination.

    Args:
        url: the folder.
        quick: read sizes and headers by ranges, not the whole content.

    Returns:
        `splits`, `samples`, `shards`, `bytes`.

    Raises:
        UserError: naming the first damage; every broken shard and sample is logged before.
    """
    url = storage.absolute(url)
    manifests = {folder: load_manifest(folder)[0] for folder in _splits(url)}
    jobs = [
        _Job(storage.join(folder, shard.name), shard, quick)
        for folder, manifest in manifests.items()
        for shard in manifest.shards
    ]
    found = dict(track(parallel_map(_check, jobs), len(jobs), "verify"))
    problems = [text for index in sorted(found) for text in found[index]]
    for problem in problems:
        log.warning("damaged: %s", problem)
    if problems:
        rest = f" (and {len(problems) - 1} more, see above)" if len(problems) > 1 else ""
        raise DamagedError(f"{problems[0]}{rest}; remove the split's folder and preprocess again")
    return {
        "splits": [manifest.split for manifest in manifests.values()],
        "samples": sum(manifest.samples for manifest in manifests.values()),
        "shards": len(jobs),
        "bytes": sum(manifest.bytes for manifest in manifests.values()),
    }


def _splits(url: str) -> list[str]:
    if storage.exists(storage.join(url, NAME)):
        return [url]
    if not storage.exists(url):
        raise UserError(f"{url}: no such folder")
    below = [storage.join(url, name) for name in storage.list_names(url)]
    found = [folder for folder in below if storage.exists(storage.join(folder, NAME))]
    if not found:
        raise UserError(f"{url}: no {NAME} there nor one folder below; was it preprocessed?")
    return found


def _check(job: _Job) -> list[str]:
    if not storage.exists(job.url):
        return [f"{job.url}: missing"]
    size = storage.size(job.url)
    if size != job.shard.bytes:
        return [f"{job.url}: {size} bytes instead of {job.shard.bytes}"]
    if job.quick:
        return [text for entry in job.shard.samples for text in _quick(job.url, entry)]
    if storage.is_local(job.url):
        return list(_whole(job, storage.local_path(job.url)))
    with storage.scratch_folder() as folder:
        path = Path(folder) / job.shard.name
        storage.download(job.url, path)
        return list(_whole(job, path))


def _whole(job: _Job, path: Path) -> Iterator[str]:
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    expected = {f"{e.key}.{m}": place for e in job.shard.samples for m, place in e.members.items()}
    mapped = np.asarray(np.memmap(path, np.uint8, "r"))
    found = [text for entry in job.shard.samples for text in _sample(job.url, mapped, entry)]
    yield from found
    if _members(path) != expected:
        yield f"{job.url}: its members are not those of the manifest"
    elif digest != job.shard.sha256 and not found:
        yield f"{job.url}: its sha256 is not the manifest's"


def _members(path: Path) -> dict[str, tuple[int, int]] | None:
    try:
        with tarfile.open(path, "r:") as tar:
            return {m.name: (m.offset_data, m.size) for m in tar if m.isreg()}
    except (tarfile.TarError, ValueError, OverflowError, EOFError, RecursionError, MemoryError):
        return None


def _sample(url: str, shard: Image, entry: SampleEntry) -> Iterator[str]:
    changed = changed_members(shard, entry)
    for member in entry.members:
        try:
            if member in changed:
                raise damaged_member(url, entry, member)
            if member == META:
                read_meta(shard, entry, url)
            else:
                view_member(shard, entry, member, url)
        except DamagedError:
            yield damage(url, entry, member)


def _quick(url: str, entry: SampleEntry) -> Iterator[str]:
    for member, (offset, length) in entry.members.items():
        if offset < TAR_BLOCK:
            yield damage(url, entry, member)
            continue
        data = storage.read_bytes(url, offset - TAR_BLOCK, offset + min(length, HEADER))
        try:
            info = tarfile.TarInfo.frombuf(data[:TAR_BLOCK], "utf-8", "strict")
            sound = info.isreg() and info.name == f"{entry.key}.{member}" and info.size == length
        except (tarfile.TarError, UnicodeDecodeError):
            sound = False
        if member != META:
            sound = sound and array_start(data[TAR_BLOCK:], entry, member) is not None
        if not sound:
            yield damage(url, entry, member)
