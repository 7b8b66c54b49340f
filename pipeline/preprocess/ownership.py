"""Whose a destination is, and what an interrupted run has left there.

A split's folder is claimed by `.parts/claim.json`, the fingerprint of what is to be written. Beside
it wait the descriptions of finished shards. Publishing writes the manifest and removes `.parts`.
"""

from __future__ import annotations

from typing import Any

from pipeline import storage
from pipeline.data.manifest import NAME, load_manifest
from pipeline.errors import DamagedError, UserError
from pipeline.preprocess.convert import PARTS, ShardJob
from pipeline.preprocess.publish import CONTACT, SKIPPED

CLAIM = f"{PARTS}/claim.json"


def refuse_others(dest: str, splits: list[str]) -> None:
    """Refuse a destination with anything in it but these splits, and others made by this verb.

    Raises:
        UserError: naming what is there.
    """
    for name in storage.list_names(dest):
        if name not in splits and not _is_split(storage.join(dest, name)):
            raise _other(dest, name)


def _is_split(folder: str) -> bool:
    if storage.exists(storage.join(folder, CLAIM)):
        return True
    try:
        return bool(load_manifest(folder)[0].statistics.get("fingerprint"))
    except DamagedError:
        return True
    except UserError:
        return False


def published(fingerprint: str, jobs: list[ShardJob]) -> bool:
    """Whether this very split is there already; else claim its folder, or refuse.

    Raises:
        UserError: if the folder holds something else. DamagedError: if a shard is missing.
    """
    folder = jobs[0].dest
    there = {entry.relative: entry.size for entry in storage.find(folder)}
    if NAME in there:
        _require_whole(folder, fingerprint, there)
    else:
        _require_claimed(folder, fingerprint, jobs, there)
    storage.remove_unfinished(folder)
    if NAME in there:
        storage.delete(storage.join(folder, PARTS))
    elif CLAIM not in there:
        storage.write_json(storage.join(folder, CLAIM), fingerprint)
    return NAME in there


def _require_whole(folder: str, fingerprint: str, there: dict[str, int]) -> None:
    manifest = load_manifest(folder)[0]
    if manifest.statistics.get("fingerprint") != fingerprint:
        raise _other(folder, NAME)
    for shard in manifest.shards:
        if there.get(shard.name) != shard.bytes:
            raise DamagedError(
                f"{storage.join(folder, shard.name)}: missing or cut short; remove the split's "
                "folder and preprocess again"
            )


def _require_claimed(
    folder: str, fingerprint: str, jobs: list[ShardJob], there: dict[str, int]
) -> None:
    ours: set[str] = set()
    if CLAIM in there:
        if storage.read_json(storage.join(folder, CLAIM)) != fingerprint:
            raise _other(folder, PARTS)
        ours = {CONTACT, SKIPPED, *(job.name for job in jobs)}
        ours |= {name for name in there if name.startswith(f"{PARTS}/")}
    for name in there:
        if name not in ours:
            raise _other(folder, name)


def finished(jobs: list[ShardJob]) -> dict[str, Any]:
    """The descriptions, by their URL, of the shards that are there and have the right size."""
    there = {
        storage.join(folder, entry.relative): entry.size
        for folder in dict.fromkeys(job.dest for job in jobs)
        for entry in storage.find(folder)
    }
    parts = {}
    for job in jobs:
        if job.part_url in there:
            part = storage.read_json(job.part_url)
            size = part["shard"]["bytes"] if part["shard"]["samples"] else None
            if there.get(storage.join(job.dest, job.name)) == size:
                parts[job.part_url] = part
    return parts


def _other(folder: str, name: str) -> UserError:
    return UserError(f"{folder}: holds something else ({name}); choose another --dest, or empty it")
