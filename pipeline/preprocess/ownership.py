"""Which process a destination belongs to, and what an interrupted one has left there.

A split's folder is claimed by `.parts/claim.json`: the fingerprint of what will be written, and the
process that writes it. The descriptions of finished shards are kept beside it. Publishing writes
the manifest and removes `.parts`.

Two processes must not write one destination. On a local disk the second is refused at once by a
lock on the folder, which ends with its process. In a bucket, which has no locks, the newest claim
wins: the earlier process finds another name there and stops.
"""

from __future__ import annotations

import os
import platform
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline import storage
from pipeline.border import BadInput, validated
from pipeline.data.manifest import NAME, load_manifest, parse_shard
from pipeline.errors import DamagedError, UserError
from pipeline.preprocess.convert import PARTS, ShardJob
from pipeline.preprocess.publish import CONTACT, SKIPPED
from pipeline.storage.local import explained

CLAIM = f"{PARTS}/claim.json"
HOLDER = f"process {os.getpid()} on {platform.node()}, {secrets.token_hex(4)}"


@contextmanager
def sole_writer(dest: str) -> Iterator[None]:
    """Hold a local destination for this process; a bucket is not locked.

    Raises:
        UserError: naming the process that holds it.
    """
    if not storage.is_local(dest):
        yield
        return
    import fcntl

    folder = storage.local_path(dest)
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{dest}: {_holder_of(descriptor)} is preprocessing into it; wait until it ends, "
                "or choose another --dest"
            ) from None
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(descriptor)


def _holder_of(descriptor: int) -> str:
    """Linux lists every lock with its process and inode."""
    inode = os.fstat(descriptor).st_ino
    try:
        locks = Path("/proc/locks").read_text(encoding="ascii")
    except OSError:
        locks = ""
    match = re.search(rf"FLOCK\s+\S+\s+\S+\s+(\d+)\s+\S+:{inode}\s", locks)
    return f"process {match.group(1)}" if match else "another process"


def require_claims(jobs: list[ShardJob]) -> None:
    """Check that the claims on these jobs' folders are still this process's.

    Raises:
        UserError: naming the process that has taken over.
    """
    for folder in dict.fromkeys(job.dest for job in jobs):
        url = storage.join(folder, CLAIM)
        if storage.exists(storage.join(folder, NAME)):
            raise UserError(
                f"{folder}: another `era preprocess` has just finished this split; "
                "run the command again to check it"
            )
        claim = storage.read_json(url) if storage.exists(url) else None
        holder = claim.get("holder") if isinstance(claim, dict) else "another process"
        if holder != HOLDER:
            raise UserError(
                f"{folder}: {holder} has taken over; wait until it ends, or choose another --dest"
            )


def refuse_others(dest: str, splits: list[str]) -> None:
    """Refuse a destination that holds anything but these splits and others made by this verb.

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
    except BadInput:  # some other program's
        return False
    except DamagedError:
        return True
    except UserError:
        return False


def published(fingerprint: str, jobs: list[ShardJob]) -> bool:
    """Whether exactly this split exists already; if not, claim its folder or refuse.

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
    else:
        claim = {"fingerprint": fingerprint, "holder": HOLDER}
        storage.write_json(storage.join(folder, CLAIM), claim)
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
        claim = storage.read_json(storage.join(folder, CLAIM))
        if not isinstance(claim, dict) or claim.get("fingerprint") != fingerprint:
            raise UserError(
                f"{folder}: an unfinished conversion of other pictures, or of these as they were "
                "before; remove the folder to begin anew, or choose another --dest"
            )
        ours = {CONTACT, SKIPPED, *(job.name for job in jobs)}
        ours |= {name for name in there if name.startswith(f"{PARTS}/")}
    for name in there:
        if name not in ours:
            raise _other(folder, name)


def finished(jobs: list[ShardJob]) -> dict[str, Any]:
    """The descriptions, by URL, of the shards that exist and have the right size.

    Not of those with bad pairs: what was wrong (memory, a disk's fault) may be so no more.
    """
    there = {
        storage.join(folder, entry.relative): entry.size
        for folder in dict.fromkeys(job.dest for job in jobs)
        for entry in storage.find(folder)
    }
    parts = {}
    for job in jobs:
        if job.part_url in there:
            try:
                part = storage.read_json(job.part_url)
                parse_shard(part["shard"], job.part_url)
                size = part["shard"]["bytes"] if part["shard"]["samples"] else None
                validated(list[dict[str, Any]], part["seen"], job.part_url)
                validated(list[tuple[str, str]], part["problems"], job.part_url)
            except (KeyError, TypeError, BadInput):
                continue  # damaged: the shard is converted again
            if not part["problems"] and there.get(storage.join(job.dest, job.name)) == size:
                parts[job.part_url] = part
    return parts


def _other(folder: str, name: str) -> UserError:
    return UserError(f"{folder}: holds something else ({name}); choose another --dest, or empty it")
