"""`era preprocess`: check everything, convert shard by shard, publish the manifests last."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from pipeline import storage
from pipeline.data.manifest import FORMAT, load_manifest
from pipeline.errors import UserError
from pipeline.parallel_map import parallel_map
from pipeline.preprocess.convert import CLIPPED, ShardJob, convert
from pipeline.preprocess.layouts import Pair, base_of, read_layout
from pipeline.preprocess.ownership import (
    finished,
    published,
    refuse_others,
    require_claims,
    sole_writer,
)
from pipeline.preprocess.precheck import Header, Problem, precheck
from pipeline.preprocess.publish import publish, skipped_of
from pipeline.progress import track

log = logging.getLogger("era")
SHARD_BYTES = 128 << 20
NEAR_DUPLICATE = 3  # bits of 64


def preprocess(
    dataset: str, source: str, dest: str, skip_bad: bool = False, shard_bytes: int = SHARD_BYTES
) -> dict[str, Any]:
    """Convert a data set to shards; repeating the call continues after the finished shards.

    Args:
        dataset: one of `layouts.DATASETS`.
        source, dest: URLs.
        skip_bad: leave bad pairs out (listed in ``skipped.json``) instead of stopping.
        shard_bytes: the greatest size of a shard.

    Returns:
        `splits`, `samples`, `shards`, `bytes`, `skipped`; `incomplete` if any was skipped.

    Raises:
        UserError: for any fault of the source, or a destination that holds something else or is
            being written by another process.
    """
    source, dest = storage.absolute(source), storage.absolute(dest)
    layout = read_layout(dataset, source)
    for warning in layout.warnings:
        log.warning("%s", warning)
    refuse_others(dest, [*layout.splits, *layout.unpaired])
    storage.check_writable(dest)
    inspection = precheck(source, layout)
    bad = inspection.problems
    _stop_if(bad, skip_bad)
    splits = _without(layout.splits, bad)
    plans = {
        split: _plan(dataset, source, dest, split, pairs, inspection.headers, shard_bytes)
        for split, pairs in splits.items()
    }
    with sole_writer(dest):
        bad = _convert_and_publish(dataset, dest, plans, splits, bad, skip_bad)
    return _summary(dest, list(splits), len({(p.split, p.pair or p.key) for p in bad}))


def _convert_and_publish(
    dataset: str,
    dest: str,
    plans: dict[str, tuple[str, list[ShardJob]]],
    splits: dict[str, list[Pair]],
    bad: list[Problem],
    skip_bad: bool,
) -> list[Problem]:
    """Write all shards that are missing, then all manifests; returns every problem found."""
    todo = {split: plan for split, plan in plans.items() if not published(*plan)}
    for split in plans.keys() - todo.keys():  # what was found while it was converted
        known = {problem.key for problem in bad if problem.split == split}
        listed = skipped_of(storage.join(dest, split))
        bad = bad + [Problem(split, key, text) for key, text in listed if key not in known]
    jobs_todo = [job for _, jobs in todo.values() for job in jobs]
    try:
        parts = _convert_all(jobs_todo)
    except UserError:
        require_claims(jobs_todo)  # a better reason than a file that has disappeared
        raise
    require_claims(jobs_todo)
    bad = bad + [
        Problem(split, key, text)
        for split, (_, jobs) in todo.items()
        for job in jobs
        for key, text in parts[job.part_url]["problems"]
    ]
    _stop_if(bad, skip_bad)
    _without(splits, bad)  # conversion may have left nothing
    _warn({split: [parts[j.part_url] for j in jobs] for split, (_, jobs) in todo.items()})
    for split, (fingerprint, jobs) in todo.items():
        skipped = [(p.key, p.text) for p in bad if p.split == split]
        found = [parts[job.part_url] for job in jobs]
        publish(dataset, split, storage.join(dest, split), found, fingerprint, skipped)
    return bad


def _stop_if(problems: list[Problem], skip_bad: bool) -> None:
    if not problems:
        return
    for problem in problems:
        log.warning("%s: %s", "skipped" if skip_bad else "bad", problem.text)
    of_splits = [problem for problem in problems if not problem.key]  # no pair to set aside
    if of_splits or not skip_bad:
        rest = f" (and {len(problems) - 1} more, see above)" if len(problems) > 1 else ""
        cure = "correct it" if of_splits else "correct it, or leave bad pairs out with --skip-bad"
        raise UserError(f"{problems[0].text}{rest}; {cure}")


def _without(splits: dict[str, list[Pair]], problems: list[Problem]) -> dict[str, list[Pair]]:
    bad = {(p.split, p.pair or p.key) for p in problems}
    kept = {
        split: [p for p in pairs if not {(split, p), (split, p.key)} & bad]
        for split, pairs in splits.items()
    }
    empty = [split for split, pairs in kept.items() if not pairs]
    if empty:
        raise UserError(f"split {', '.join(empty)}: no sound pair is left")
    return kept


def _plan(
    dataset: str,
    source: str,
    dest: str,
    split: str,
    pairs: list[Pair],
    headers: dict[str, Header],
    shard_bytes: int,
) -> tuple[str, list[ShardJob]]:
    """The fingerprint, and which pair goes into which shard: a function of the source alone."""
    groups: list[list[Pair]] = [[]]
    filled = 0
    for pair in pairs:
        size = sum(_raw_bytes(headers[name]) for name in pair.files)
        if groups[-1] and filled + size > shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(pair)
        filled += size
    folder = storage.join(dest, split)
    hashes = {name: header.sha256 for name, header in headers.items()}
    jobs = [
        ShardJob(
            base_of(source),
            folder,
            f"shard-{number:05d}.tar",
            group,
            {name: hashes[name] for pair in group for name in pair.files},
        )
        for number, group in enumerate(groups)
    ]
    content = [[pair.key, *(hashes[name] for name in pair.files)] for pair in pairs]
    text = json.dumps([FORMAT, dataset, split, content, shard_bytes])
    return hashlib.sha256(text.encode()).hexdigest(), jobs


def _raw_bytes(header: Header) -> int:
    return 2 * header.channels * header.width * header.height


def _convert_all(jobs: list[ShardJob]) -> dict[str, Any]:
    """Convert the shards that are missing; returns every shard's description by its URL."""
    parts = finished(jobs)
    missing = [job for job in jobs if job.part_url not in parts]
    if len(missing) < len(jobs):
        log.info("%d of %d shards exist already", len(jobs) - len(missing), len(jobs))
    for index, part in track(parallel_map(convert, missing), len(missing), "shards"):
        parts[missing[index].part_url] = part
    return parts


def _warn(parts: dict[str, list[dict[str, Any]]]) -> None:
    """Warn of oddities that are no faults: clipped pictures, near-duplicates across splits."""
    seen = [(s, one) for s, found in parts.items() for part in found for one in part["seen"]]
    for split, one in seen:
        if one["clipped"] > CLIPPED:
            log.warning("%s %s: %.0f %% is clipped", split, one["key"], 100 * one["clipped"])
    for (split, one), (other_split, other) in _near(seen):
        log.warning(
            "%s %s looks much like %s %s: the splits should share no photograph",
            split,
            one["key"],
            other_split,
            other["key"],
        )


def _near(seen: list[tuple[str, Any]]) -> Iterable[tuple[tuple[str, Any], tuple[str, Any]]]:
    """Pairs of different splits whose hashes differ in at most `NEAR_DUPLICATE` bits, in order.

    Such hashes have at least one of four quarters in common: only those are compared.
    """
    hashes = [int(one["hash"], 16) for _, one in seen]
    # By quarter, its value and the split: positions in `seen`.
    alike: list[dict[int, dict[str, list[int]]]]
    alike = [defaultdict(lambda: defaultdict(list)) for _ in range(NEAR_DUPLICATE + 1)]
    for index, (split, _) in enumerate(seen):
        quarters = [hashes[index] >> 16 * n & 0xFFFF for n in range(len(alike))]
        places = [found[part] for found, part in zip(alike, quarters, strict=True)]
        near = {o for place in places for s, those in place.items() if s != split for o in those}
        for other in sorted(near):
            if (hashes[index] ^ hashes[other]).bit_count() <= NEAR_DUPLICATE:
                yield seen[index], seen[other]
        for place in places:
            place[split].append(index)


def _summary(dest: str, splits: list[str], skipped: int) -> dict[str, Any]:
    manifests = [load_manifest(storage.join(dest, split))[0] for split in splits]
    return {
        "splits": splits,
        "samples": sum(manifest.samples for manifest in manifests),
        "shards": sum(len(manifest.shards) for manifest in manifests),
        "bytes": sum(manifest.bytes for manifest in manifests),
        "skipped": skipped,
        "incomplete": bool(skipped),
    }
