"""Checks of object storage as a run uses it: a folder to write in, a data set to read."""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path

from pipeline import storage
from pipeline.data.manifest import Manifest, Shard, load_manifest
from pipeline.doctor.finding import FAILURE, OK, Finding, judged
from pipeline.doctor.machine import answer_of

MULTIPART = 48 << 20  # bytes: more than one part of an upload
SKEW = 300  # seconds; S3 refuses 900
LARGEST = 1 << 30  # bytes of a shard that is read whole


def check_bucket(url: str) -> Iterator[Finding]:
    """Check that a folder can be written, read, written in parts, and deleted from.

    Raises:
        UserError: for the first operation that fails.
    """
    place = storage.join(url, f".era-doctor-{secrets.token_hex(4)}")
    storage.write_bytes(place, b"era")  # refused rights and dead addresses end here
    try:
        same = storage.read_bytes(place) == b"era"
        with storage.scratch_folder() as folder:
            large = Path(folder) / "large"
            large.write_bytes(os.urandom(MULTIPART))
            began = time.monotonic()
            storage.upload(large, place)
            written = time.monotonic()
            same = same and storage.read_bytes(place) == large.read_bytes()
            ended = time.monotonic()
    finally:
        storage.delete(place)
    good = same and not storage.exists(place)
    up, down = (MULTIPART / 1e6 / s for s in (written - began, ended - written))
    text = f"{url}: write, read, multipart and delete" if good else f"{url}: not what was written"
    speeds = f" (parts written at {up:.0f} MB/s, read at {down:.0f} MB/s)"
    cure = "this server does not keep S3's promises: use another"
    yield judged("bucket", good, text + speeds, cure, FAILURE)
    if not storage.is_local(url):
        yield from _server_clock()


def _server_clock() -> Iterator[Finding]:
    """Compare clocks: S3 refuses requests whose time is 15 minutes off."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    headers = answer_of(endpoint or "https://s3.amazonaws.com")
    date = headers.get("Date") if headers else None
    if date:
        skew = abs(time.time() - parsedate_to_datetime(date).timestamp())
        text = f"{max(0.0, skew - 1):.0f} s from the S3 server's"  # its date has whole seconds
        yield judged("clock", skew < SKEW, text, "set this machine's clock (NTP)", FAILURE)


def check_data(url: str) -> Iterator[Finding]:
    """Check that every shard exists in its size, and the sha256 of one that is chosen at random.

    Raises:
        UserError: if there is no manifest that can be read.
    """
    manifest, _ = load_manifest(url)
    there = {entry.relative: entry.size for entry in storage.find(url)}
    lost = [shard.name for shard in manifest.shards if there.get(shard.name) != shard.bytes]
    if lost:
        shown = ", ".join(lost[:3]) + (f" and {len(lost) - 3} more" if len(lost) > 3 else "")
        text = f"{url}: missing or of another size: {shown}; preprocess again"
        yield Finding("data", FAILURE, text)
        return
    yield _read_one(url, manifest)


def _read_one(url: str, manifest: Manifest) -> Finding:
    size, count = manifest.bytes / 1e9, len(manifest.shards)
    text = f"{url}: {manifest.samples} samples in {count} shards, {size:.2f} GB"
    small = [shard for shard in manifest.shards if shard.bytes <= LARGEST]
    if not small:
        return Finding("data", OK, f"{text}; all there (too large to read one whole here)")
    shard: Shard = secrets.choice(small)
    place = storage.join(url, shard.name)
    began = time.monotonic()
    digest = hashlib.sha256(storage.read_bytes(place)).hexdigest()
    rate = shard.bytes / 1e6 / (time.monotonic() - began)
    if digest != shard.sha256:
        damage = f"{place}: damaged: its sha256 is not the manifest's"
        return Finding("data", FAILURE, f"{damage}; run `era verify {url}`, then preprocess again")
    return Finding("data", OK, f"{text}; all there, {shard.name} read whole at {rate:.0f} MB/s")
