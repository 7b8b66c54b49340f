"""Shards, manifest, cache and loader."""

from __future__ import annotations

import gc
import gzip
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import threading
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset as wds
from conftest import S3Server
from faulty_proxy import Plan, faulty_proxy
from filelock import FileLock

from pipeline import storage
from pipeline.data import cache
from pipeline.data.augment import flip, to_device
from pipeline.data.cache import ShardCache
from pipeline.data.loader import Batch, TrainLoader
from pipeline.data.manifest import load_manifest
from pipeline.data.node_locks import NodeLocks
from pipeline.data.order import OrderPlan
from pipeline.data.split import Split, open_split
from pipeline.errors import DamagedError, StorageDown, UserError
from pipeline.storage import ranges
from pipeline.storage.entry import UNFINISHED
from pipeline.verify import verify

PLAN = OrderPlan(
    seed=0,
    global_batch=5,
    crops_per_image=2,
    window=2,
    patch=(16, 24),
    steps=12,
    rotate=True,
    min_sharpness_quantile=0.3,
)


def loader(
    split: Split, rank: int = 0, world: int = 1, start: int = 0, **options: Any
) -> TrainLoader:
    return TrainLoader(
        split,
        PLAN,
        rank=rank,
        world_size=world,
        start_step=start,
        steps=PLAN.steps,
        log_samples=True,
        **options,
    )


def samples(*parts: TrainLoader) -> list[tuple[str, int]]:
    """What all ranks saw, in position order."""
    steps: dict[int, list[tuple[str, int]]] = {}
    for part in parts:
        for batch in part:
            pairs = zip(batch.ids, batch.crcs, strict=True)
            steps.setdefault(batch.step, []).extend(pairs)
        part.close()
    return [pair for step in sorted(steps) for pair in steps[step]]


def test_webdataset_reads_the_same_shards(tiny_data: Path) -> None:
    manifest, _ = load_manifest(str(tiny_data / "train"))
    urls = [str(tiny_data / "train" / shard.name) for shard in manifest.shards]
    found = list(wds.WebDataset(urls, shardshuffle=False).decode())
    assert [one["__key__"] for one in found] == open_split(str(tiny_data / "train")).keys
    assert found[0]["blur.npy"].dtype == np.uint16
    assert found[0]["blur.npy"].shape == found[0]["sharp.npy"].shape == (48, 56, 3)
    assert found[0]["json"]["bit_depth"] == 16


def test_members_stand_in_order_and_time_stands_still(tiny_data: Path) -> None:
    shard = next((tiny_data / "train").glob("*.tar"))
    with tarfile.open(shard) as tar:
        members = tar.getmembers()
    endings = [member.name.partition(".")[2] for member in members[:4]]
    assert endings == ["blur.npy", "sharp.npy", "radius.npy", "json"]
    assert {(m.mtime, m.uid, m.gid, m.mode) for m in members} == {(0, 0, 0, 0o644)}


def test_sequence_is_the_same_for_any_world_and_any_workers(tiny_data: Path) -> None:
    split = open_split(str(tiny_data / "train"))
    alone = samples(loader(split))
    assert len(alone) == PLAN.steps * PLAN.global_batch
    for world in (2, 3, 5):
        assert samples(*(loader(split, rank, world) for rank in range(world))) == alone
    assert samples(loader(split, workers=3, prefetch=1)) == alone


def test_resuming_anywhere_continues_the_sequence(tiny_data: Path) -> None:
    split = open_split(str(tiny_data / "train"))
    alone = samples(loader(split))
    for start in (1, 7, 11):
        assert samples(loader(split, start=start)) == alone[start * PLAN.global_batch :]


def test_crops_are_what_the_ids_say(tiny_data: Path) -> None:
    split = open_split(str(tiny_data / "train"))
    batch = next(iter(loader(split)))
    key, _, place = batch.ids[2].partition("@")
    top, left, size, code = map(int, place.split(","))
    whole = split.load(split.keys.index(key))
    crop = whole.blur[top : top + size, left : left + size]
    assert np.array_equal(batch.blur[2].numpy(), crop)
    tensors = to_device(batch, torch.device("cpu"))
    expected = torch.from_numpy(crop.astype(np.float32) / 65535).permute(2, 0, 1)
    torch.testing.assert_close(tensors.blur[2], flip(expected, code))
    assert tensors.radius is not None
    assert tensors.radius.shape == (5, 1, size, size)


def test_flips_are_the_eight_symmetries() -> None:
    image = torch.arange(9).view(3, 3)
    assert len({tuple(flip(image, code).flatten().tolist()) for code in range(8)}) == 8


def damaged_copy(source: Path, target: Path, place: int, count: int) -> tuple[Path, str]:
    """A copy of a split: bytes of its first shard's first sharp image are turned over."""
    shutil.copytree(source, target)
    manifest, _ = load_manifest(str(target))
    entry = manifest.shards[0].samples[0]
    path = target / manifest.shards[0].name
    data = bytearray(path.read_bytes())
    offset, length = entry.members["sharp.npy"]
    start = offset + place % length
    data[start : start + count] = bytes(255 - byte for byte in data[start : start + count])
    path.write_bytes(data)
    return target, entry.key


@pytest.mark.parametrize(("place", "count"), [(0, 100), (-1, 1)])  # the array's header; a pixel
def test_damaged_sample_stops_with_its_name_or_is_skipped(
    place: int, count: int, tiny_data: Path, tmp_path: Path
) -> None:
    folder, key = damaged_copy(tiny_data / "train", tmp_path / "train", place, count)
    split = open_split(str(folder))
    with pytest.raises(DamagedError, match=f"{key}.*sharp.npy is damaged"):
        samples(loader(split))
    lenient = loader(split, skip_damaged=True)
    seen = samples(lenient)
    assert len(seen) == PLAN.steps * PLAN.global_batch
    assert list(lenient.skipped) == [key]
    assert not any(name.startswith(key) for name, _ in seen)


def test_older_manifests_are_read_and_a_damaged_pixel_condemns_the_shard(
    tiny_data: Path, tmp_path: Path
) -> None:
    folder, _ = damaged_copy(tiny_data / "train", tmp_path / "train", -1, 1)
    values = json.loads((folder / "manifest.json").read_text())
    for shard in values["shards"]:
        for sample in shard["samples"]:
            del sample["crc32"]
    (folder / "manifest.json").write_text(json.dumps(values))
    lenient = loader(open_split(str(folder)), skip_damaged=True)
    assert len(samples(lenient)) == PLAN.steps * PLAN.global_batch
    assert set(lenient.skipped) == {sample["key"] for sample in values["shards"][0]["samples"]}
    with pytest.raises(DamagedError, match=r"shard-00000\.tar: damaged: its sha256"):
        samples(loader(open_split(str(folder))))


def test_local_shards_are_hashed_once_in_a_process(tiny_data: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_data / "train", tmp_path / "train")
    before = cache.sha256_of.cache_info().misses
    for _ in range(2):
        samples(loader(open_split(str(folder))))
    assert cache.sha256_of.cache_info().misses - before == len(list(folder.glob("*.tar")))


def test_vanished_shard_is_named(tiny_data: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_data / "train", tmp_path / "train")
    (folder / "shard-00001.tar").unlink()
    with pytest.raises(UserError, match=r"shard-00001\.tar: this shard has vanished"):
        samples(loader(open_split(str(folder))))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("shards", 0, "samples", 0, "height"), "x"),
        (("shards", 0, "samples", 0, "width"), None),
        (("shards", 0, "samples", 0, "members", "blur.npy"), [0, "9"]),
        (("shards", 0, "samples", 0, "members"), []),
        (("shards", 0, "bytes"), None),
        (("shards", 0, "bytes"), True),
        (("shards", 0, "name"), 3),
        (("bit_depth",), "16"),
        (("sharp",), 1),
        (("shards",), 4),
    ],
)
def test_manifest_of_wrong_types_is_refused(
    path: tuple[str | int, ...], value: object, tiny_data: Path, tmp_path: Path
) -> None:
    values = json.loads((tiny_data / "train" / "manifest.json").read_text())
    place = values
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    (tmp_path / "manifest.json").write_text(json.dumps(values))
    for use in (load_manifest, verify):
        with pytest.raises(UserError, match="not a manifest that can be read"):
            use(str(tmp_path))


def test_broken_manifests_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="make it with `era preprocess`"):
        open_split(str(tmp_path))
    (tmp_path / "manifest.json").write_text('{"format": "era-shards/9"}')
    with pytest.raises(UserError, match="not of format"):
        open_split(str(tmp_path))
    (tmp_path / "manifest.json").write_text('{"format": ')
    with pytest.raises(UserError, match="not a manifest"):
        open_split(str(tmp_path))


def test_closing_early_leaves_no_thread(tiny_data: Path) -> None:
    part = loader(open_split(str(tiny_data / "train")), prefetch=1)
    next(iter(part))
    part.close()
    assert not part._thread.is_alive()


def upload(folder: Path, url: str) -> None:
    for path in folder.iterdir():
        storage.upload(path, storage.join(url, path.name))


def test_remote_shards_are_cached_checked_and_shared(
    tiny_data: Path, s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = storage.join(s3_server.url, "train")
    upload(tiny_data / "train", url)
    local = samples(loader(open_split(str(tiny_data / "train"))))
    assert samples(loader(open_split(url, str(tmp_path)))) == local
    copies = sorted((tmp_path / "shards").glob("*.tar"))
    manifest, _ = load_manifest(url)
    assert {hashlib.sha256(p.read_bytes()).hexdigest() for p in copies} == {
        shard.sha256 for shard in manifest.shards
    }
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.storage.begin_download", None)  # nothing is downloaded twice
        assert samples(loader(open_split(url, str(tmp_path)))) == local
    copy = tmp_path / "shards" / f"{manifest.shards[0].sha256}.tar"
    offset, length = manifest.shards[0].samples[0].members["blur.npy"]
    for bad_disk in (False, True):  # another program changes the file's time
        before = copy.stat()
        with copy.open("r+b") as stream:
            stream.seek(offset + length // 2)
            stream.write(b"?" * 64)
        if bad_disk:
            os.utime(copy, ns=(before.st_atime_ns, before.st_mtime_ns))
            cache.sha256_of.cache_clear()  # as in a new process
        assert samples(loader(open_split(url, str(tmp_path)))) == local


def test_ranks_of_a_node_share_one_read_of_the_manifest(
    tiny_data: Path, s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = storage.join(s3_server.url, "train")
    upload(tiny_data / "train", url)
    text = storage.read_bytes(storage.join(url, "manifest.json"))
    digest = hashlib.sha256(text).hexdigest()
    with faulty_proxy(s3_server.endpoint, lambda method, path: "") as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)

        def opened(room: float = 100.0) -> tuple[str, int]:
            """The manifest that four ranks see, and how often the store was asked for it."""
            proxy.asked.clear()
            with ThreadPoolExecutor(4) as ranks:
                found = ranks.map(lambda _: open_split(url, str(tmp_path), room), range(4))
                digests = {split.manifest_sha256 for split in found}
            assert len(digests) == 1
            return digests.pop(), [method for method, _, _ in proxy.asked].count("GET")

        assert opened() == (digest, 1)
        assert opened() == (digest, 0)  # as after a restart
        (copy,) = (tmp_path / "shards").glob("*.manifest")
        copy.write_bytes(b"?" + copy.read_bytes()[1:])
        assert opened() == (digest, 1)
        changed = text.replace(b'"dataset": "', b'"dataset": "other')
        storage.write_bytes(storage.join(url, "manifest.json"), changed)
        assert opened() == (hashlib.sha256(changed).hexdigest(), 1)
        assert opened(1e-6) == (hashlib.sha256(changed).hexdigest(), 4)  # the cache is too small


def test_cache_stays_within_its_limit_and_refuses_damage(
    tiny_data: Path, s3_server: S3Server, tmp_path: Path
) -> None:
    url = storage.join(s3_server.url, "train")
    upload(tiny_data / "train", url)
    manifest, _ = load_manifest(url)
    largest = max(shard.bytes for shard in manifest.shards)
    cache = ShardCache(tmp_path, 2 * largest / 1e9)
    for shard in manifest.shards:
        cache.open(storage.join(url, shard.name), shard)
        held = sum(path.stat().st_size for path in tmp_path.glob("*.tar"))
        assert held <= 2 * largest
    wrong = replace(manifest.shards[0], sha256="0" * 64)
    with pytest.raises(UserError, match="damaged: its sha256"):
        cache.open(storage.join(url, wrong.name), wrong)
    with pytest.raises(UserError, match="less than one shard"):
        ShardCache(tmp_path, 1e-6).open(storage.join(url, wrong.name), wrong)


def silent(failing: list[bool]) -> Plan:
    """A bucket that answers SlowDown to whoever reads a shard, for as long as it is told."""
    return lambda method, path: "slowdown" if failing[0] and "shard-" in path else ""


def test_an_outage_damages_no_sample(
    tiny_data: Path, s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = storage.join(s3_server.url, "train")
    upload(tiny_data / "train", url)
    local = samples(loader(open_split(str(tiny_data / "train"))))
    monkeypatch.setattr("pipeline.storage.bucket.RETRY_FOR", 0.1)  # seconds, then it is "down"
    monkeypatch.setattr("pipeline.storage.outage_retry.WAITS", (0.1,) * 50)
    failing = [True]
    with faulty_proxy(s3_server.endpoint, silent(failing)) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        lenient = loader(open_split(url, str(tmp_path)), skip_damaged=True)
        batches = iter(lenient)
        threading.Timer(2.0, lambda: failing.__setitem__(0, False)).start()
        seen = [pair for batch in batches for pair in zip(batch.ids, batch.crcs, strict=True)]
        lenient.close()
    assert proxy.faults() > 3
    assert seen == local
    assert lenient.skipped == {}


def test_an_outage_that_lasts_is_no_damage_either(
    tiny_data: Path, s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = storage.join(s3_server.url, "train")
    upload(tiny_data / "train", url)
    monkeypatch.setattr("pipeline.storage.bucket.RETRY_FOR", 0.1)
    monkeypatch.setattr("pipeline.storage.outage_retry.WAITS", (0.1,))
    with faulty_proxy(s3_server.endpoint, silent([True])) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        lenient = loader(open_split(url, str(tmp_path)), skip_damaged=True)
        with pytest.raises(StorageDown):
            samples(lenient)
        lenient.close()
        assert lenient.skipped == {}
        monkeypatch.setattr("pipeline.storage.outage_retry.WAITS", (60.0,))
        patient = loader(open_split(url, str(tmp_path)), skip_damaged=True)
        patient._thread.start()
        time.sleep(0.7)
        began = time.monotonic()
        patient.close()  # a run that ends does not wait for the bucket
        assert time.monotonic() - began < 10


def test_a_shard_that_was_damaged_on_its_way_is_fetched_again(
    tiny_data: Path, s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = storage.join(s3_server.url, "train")
    upload(tiny_data / "train", url)
    shard, real = load_manifest(url)[0].shards[0], cache.storage.begin_download
    digests: list[str] = []

    def begin(*given: Any) -> Callable[[], str]:
        finish = real(*given)
        return lambda: digests.append(finish()) or (digests[1:] and digests[-1]) or "0" * 64

    monkeypatch.setattr(cache.storage, "begin_download", begin)
    copy = ShardCache(tmp_path, 1.0).open(storage.join(url, shard.name), shard)
    assert copy.tobytes() == (tiny_data / "train" / shard.name).read_bytes()
    assert digests == [shard.sha256] * 2


def test_a_copy_that_is_evicted_before_it_is_hashed_is_fetched_again(
    tiny_data: Path, s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = storage.join(s3_server.url, "train")
    upload(tiny_data / "train", url)
    shard, truly = load_manifest(url)[0].shards[0], cache.sha256_of
    ShardCache(tmp_path, 1.0).open(storage.join(url, shard.name), shard)
    asked = []

    def evicted(path: Path, identity: cache.Identity) -> str:
        if not asked:
            asked.append(path)
            path.unlink()
            raise FileNotFoundError(path)
        return truly(path, identity)

    monkeypatch.setattr(cache, "sha256_of", evicted)
    copy = ShardCache(tmp_path, 1.0).open(storage.join(url, shard.name), shard)
    assert asked and copy.tobytes() == (tiny_data / "train" / shard.name).read_bytes()


def test_downloads_that_wait_for_others_count_as_alive(tmp_path: Path) -> None:
    """Over a slow link the first bytes of the last file arrive after minutes."""
    first, last = tmp_path / "first", tmp_path / "last"
    waiting = threading.Event()
    for path in (first, last):
        path.touch()
    finish_last = ranges.begin(lambda a, b: [waiting.wait(60) and bytes(b - a)], 10, last)
    os.utime(last, (0, 0))
    ranges.begin(lambda a, b: [bytes(b - a)], 10, first)()
    assert last.stat().st_mtime > 0
    waiting.set()
    finish_last()
    os.utime(last, (0, 0))
    ranges.begin(lambda a, b: [bytes(b - a)], 10, first)()
    assert last.stat().st_mtime == 0  # it is complete, and has its time for good


def test_vanished_and_damaged_objects_are_named_or_skipped(
    tiny_data: Path, s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = storage.join(s3_server.url, "train")
    upload(tiny_data / "train", url)
    first, second = load_manifest(url)[0].shards[:2]
    storage.delete(storage.join(url, first.name))
    storage.write_bytes(storage.join(url, second.name), bytes(second.bytes))
    with pytest.raises(DamagedError, match=r"shard-0000[01]\.tar: (this shard has van|damaged)"):
        samples(loader(open_split(url, str(tmp_path))))
    downloads: list[str] = []

    def counted(source: str, size: int, path: Path) -> Callable[[], str]:
        downloads.append(storage.name_of(source))
        return begin_download(source, size, path)

    begin_download = storage.begin_download
    monkeypatch.setattr("pipeline.storage.begin_download", counted)
    lenient = loader(open_split(url, str(tmp_path)), skip_damaged=True)
    assert len(samples(lenient)) == PLAN.steps * PLAN.global_batch
    assert set(lenient.skipped) == {s.key for shard in (first, second) for s in shard.samples}
    # Once more, since it may have been the way here; then damage is not looked for again.
    assert downloads.count(second.name) == 2


def mapped(folder: Path) -> list[str]:
    """The files of a folder that this process has mapped, as the system lists them."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return sorted({line[line.index("/") :] for line in lines if f"{folder}/" in line})


def test_evicted_copies_are_let_go_of(tiny_data: Path, s3_server: S3Server, tmp_path: Path) -> None:
    """A deleted file that is mapped still takes its place on the disk."""
    url = storage.join(s3_server.url, "train")
    upload(tiny_data / "train", url)
    manifest, _ = load_manifest(url)
    largest = max(shard.bytes for shard in manifest.shards)
    assert len(manifest.shards) > 3
    local = open_split(str(tiny_data / "train"))
    plan = replace(PLAN, window=1)
    for room, name in ((2.5, "two fit"), (1.5, "one fits")):
        split = open_split(url, str(tmp_path / name), room * largest / 1e9)
        pairs = []
        for source in (local, split):
            part = TrainLoader(source, plan, rank=0, world_size=1, start_step=0, steps=12)
            pairs.append([name for batch in part for name in batch.ids])
            part.close()
            del part
        assert pairs[0] == pairs[1]
        gc.collect()
        held = mapped(tmp_path / name)
        assert not [path for path in held if "deleted" in path]
        assert 0 < len(held) <= room


def test_what_is_in_use_stays_in_the_cache(
    tiny_data: Path, s3_server: S3Server, tmp_path: Path
) -> None:
    url = storage.join(s3_server.url, "train")
    upload(tiny_data / "train", url)
    shards = load_manifest(url)[0].shards
    split = open_split(url, str(tmp_path), 2.5 * max(shard.bytes for shard in shards) / 1e9)
    paths = [tmp_path / "shards" / f"{shard.sha256}.tar" for shard in shards]
    split.shards.get(0), split.shards.get(1)
    for second, path in enumerate(paths[:2], start=1):
        os.utime(path, ns=(second * 10**9, path.stat().st_mtime_ns))
    split.shards.hold([0, 1])  # both were opened long ago, and are used all the time
    assert min(path.stat().st_atime for path in paths[:2]) > 2
    split.shards.hold([0])
    os.utime(paths[1], (2, 2))
    split.shards.get(2)
    assert [path.exists() for path in paths[:3]] == [True, False, True]
    paths[0].unlink()  # as another job's eviction does
    split.shards.hold([0, 2])
    gc.collect()
    assert mapped(tmp_path) == [str(paths[2])]


def test_cache_survives_kill_in_a_download(
    tiny_data: Path, s3_server: S3Server, tmp_path: Path
) -> None:
    url = storage.join(s3_server.url, "train")
    upload(tiny_data / "train", url)
    program = "import sys; from pipeline.data.split import open_split\n"
    program += "open_split(sys.argv[1], sys.argv[2]).shards.get(0)"

    def hangs(method: str, path: str) -> str:
        return "hang" if method == "GET" and "shard-" in path else ""

    with faulty_proxy(s3_server.endpoint, hangs) as proxy:
        process = subprocess.Popen(
            [sys.executable, "-c", program, url, str(tmp_path)],
            env={**os.environ, "AWS_ENDPOINT_URL": proxy.endpoint},
        )
        try:
            left = tmp_path / "shards"
            while not list(left.glob(".*.era-part")):
                assert process.poll() is None
                time.sleep(0.02)
        finally:
            process.kill()
            process.wait()
    assert list(left.glob(".*.era-part"))
    open_split(url, str(tmp_path)).shards.get(1)
    assert not list(left.glob(".*.era-part"))
    assert len(list(left.glob("*.tar"))) == 1


def test_ranges_and_shards_come_together_and_the_first_is_not_kept_waiting(
    tiny_data: Path, s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = storage.join(s3_server.url, "train")
    upload(tiny_data / "train", url)
    split = open_split(url, str(tmp_path))
    plan = replace(PLAN, window=1, global_batch=1)
    part = TrainLoader(split, plan, rank=0, world_size=1, start_step=0, steps=1)
    first = split.manifest.shards[split.shard_of(part.order.image(0))]
    monkeypatch.setattr("pipeline.storage.ranges.PART", -(-first.bytes // 4))
    monkeypatch.setattr("pipeline.storage.bucket.READ_TIMEOUT", 60)
    together, second, used = threading.Barrier(4), threading.Event(), threading.Event()

    def gate(method: str, path: str) -> str:
        if method == "GET" and first.name in path:
            together.wait(60)  # all its ranges are asked for at once
            second.wait(60)
        elif method == "GET" and "shard-" in path:
            second.set()  # asked for before the first is there
            used.wait(60)
        return ""

    with faulty_proxy(s3_server.endpoint, gate) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        assert part.batch(0).ids
        assert second.is_set()
        assert [path.name for path in split.shards.cache.folder.glob("*.tar")] == [
            f"{first.sha256}.tar"
        ]
        used.set()
        part.close()


def test_a_hung_download_is_passed_over_and_may_still_end(
    tiny_data: Path, s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = storage.join(s3_server.url, "train")
    upload(tiny_data / "train", url)
    monkeypatch.setattr("pipeline.data.node_locks.REPORT", 0.2)
    monkeypatch.setattr("pipeline.data.node_locks.STALLED", 1.0)
    shard = load_manifest(url)[0].shards[0]
    cache, where = ShardCache(tmp_path, 1.0), storage.join(url, shard.name)
    hung, go_on = threading.Event(), threading.Event()

    def hang(method: str, path: str) -> str:
        if method == "GET" and "shard-" in path and not hung.is_set():
            hung.set()
            go_on.wait(60)
        return ""

    with faulty_proxy(s3_server.endpoint, hang) as proxy, ThreadPoolExecutor(1) as pool:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        slow = pool.submit(cache.open, where, shard)
        assert hung.wait(60)
        assert len(cache.open(where, shard)) == shard.bytes
        go_on.set()
        assert len(slow.result()) == shard.bytes
    assert [path.name for path in tmp_path.iterdir() if path.name != "cache.lock"] == [
        f"{shard.sha256}.tar"
    ]


def test_jobs_together_stay_within_the_limit(
    tiny_data: Path, s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four that share a cache for two and a half shards; every read is whole all the same."""
    url = storage.join(s3_server.url, "train")
    upload(tiny_data / "train", url)
    shards = load_manifest(url)[0].shards
    limit = 2.5 * max(shard.bytes for shard in shards)
    most = 0

    def job(number: int) -> None:
        cache = ShardCache(tmp_path, limit / 1e9)
        for turn in range(6):
            shard = shards[(turn + number) % len(shards)]
            data = cache.open(storage.join(url, shard.name), shard)
            assert hashlib.sha256(data.data).hexdigest() == shard.sha256

    def slowly(method: str, path: str) -> str:
        time.sleep(0.005)
        return ""

    def sizes() -> int:
        total = 0
        for path in tmp_path.iterdir():
            with suppress(FileNotFoundError):
                total += path.stat().st_size
        return total

    with faulty_proxy(s3_server.endpoint, slowly) as proxy, ThreadPoolExecutor(4) as pool:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        jobs = [pool.submit(job, number) for number in range(4)]
        while not all(one.done() for one in jobs):
            most = max(most, sizes())
        for one in jobs:
            one.result()
    assert max(shard.bytes for shard in shards) < most <= limit


def test_a_download_that_ends_while_space_is_counted_is_included(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another job's download becomes a copy in the middle: its bytes are not passed over."""
    url = str(tiny_data / "train")
    first, second = load_manifest(url)[0].shards[:2]
    limit = 1.5 * max(first.bytes, second.bytes)
    cache = ShardCache(tmp_path, limit / 1e9)
    part, copy = tmp_path / f".{first.sha256}.0{UNFINISHED}", tmp_path / f"{first.sha256}.tar"
    part.write_bytes((tiny_data / "train" / first.name).read_bytes())
    count = NodeLocks.coming_bytes

    def ends_meanwhile(locks: NodeLocks) -> int:
        if part.exists():
            part.replace(copy)
        return count(locks)

    monkeypatch.setattr(NodeLocks, "coming_bytes", ends_meanwhile)
    with NodeLocks(tmp_path).of_shard(first.sha256):
        cache.open(storage.join(url, second.name), second)
    assert [path.name for path in tmp_path.glob("*.tar")] == [f"{second.sha256}.tar"]


def test_manifest_is_plain_and_whole(tiny_data: Path) -> None:
    values = json.loads((tiny_data / "train" / "manifest.json").read_text())
    assert values["format"] == "era-shards/1"
    assert values["samples"] == sum(len(shard["samples"]) for shard in values["shards"])
    assert values["statistics"]["psnr_blurred"] > 15


def test_batches_of_samples_without_radius_say_so() -> None:
    blur = torch.zeros(2, 4, 4, 3, dtype=torch.uint16)
    batch = Batch(
        0,
        ["a", "b"],
        [],
        blur,
        blur,
        torch.full((2, 4, 4), 512, dtype=torch.uint16),
        torch.tensor([True, False]),
        torch.tensor([0, 0]),
    )
    radius = to_device(batch, torch.device("cpu")).radius
    assert radius is not None
    assert radius[0].eq(2).all()
    assert radius[1].isnan().all()


def scrambled(source: Path, target: Path, old: bytes, new: bytes) -> Path:
    """A copy of a split whose first array describes itself differently; all digests fit."""
    shutil.copytree(source, target)
    values = json.loads((target / "manifest.json").read_text())
    shard = values["shards"][0]
    sample = shard["samples"][0]
    path = target / shard["name"]
    data = bytearray(path.read_bytes())
    offset, length = sample["members"]["blur.npy"]
    head = bytes(data[offset : offset + 128])
    assert old in head
    text = head[10:].replace(old, new).rstrip()
    data[offset + 10 : offset + 128] = text.ljust(117) + b"\n"
    sample["crc32"]["blur.npy"] = zlib.crc32(data[offset : offset + length])
    shard["sha256"] = hashlib.sha256(data).hexdigest()
    path.write_bytes(data)
    (target / "manifest.json").write_text(json.dumps(values))
    return target


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"False", b"True"),
        (b"'<u2'", b"'>u2'"),
        (b"'<u2'", b"'<i2'"),
        (b"(48, 56, 3)", b"(56, 48, 3)"),
        (b"(48, 56, 3)", b"(48, 168)"),
        (b"'shape'", b"'<u2'"),
    ],
)
def test_arrays_of_another_type_order_or_shape_are_refused(
    old: bytes, new: bytes, tiny_data: Path, tmp_path: Path
) -> None:
    folder = str(scrambled(tiny_data / "train", tmp_path / "train", old, new))
    said = r"blur\.npy is damaged \(expected uint16, little-endian, in C order, shape \(48, 56, 3\)"
    for read in (verify, lambda url: verify(url, quick=True), lambda url: open_split(url).load(0)):
        with pytest.raises(DamagedError, match=said):
            read(folder)


def test_a_shard_of_endless_headers_is_damaged(tiny_data: Path, tmp_path: Path) -> None:
    """Long names of long names, a header that claims 2^62 bytes, and a compressed tar."""
    long = tarfile.TarInfo("././@LongLink")
    long.type, long.size = tarfile.GNUTYPE_LONGNAME, 1
    name = long.tobuf(tarfile.GNU_FORMAT) + b"x" + bytes(511)
    pax = tarfile.TarInfo("./PaxHeaders/x")
    pax.type, pax.size = tarfile.XHDTYPE, 2**62
    for content in (name * 3000, pax.tobuf(tarfile.GNU_FORMAT), gzip.compress(bytes(10240))):
        folder = shutil.copytree(tiny_data / "train", tmp_path / "train", dirs_exist_ok=True)
        values = json.loads((folder / "manifest.json").read_text())
        shard = values["shards"][0]
        data = (folder / shard["name"]).read_bytes()
        data = content[: len(data)] + data[len(content) :]
        (folder / shard["name"]).write_bytes(data)
        shard["sha256"] = hashlib.sha256(data).hexdigest()
        (folder / "manifest.json").write_text(json.dumps(values))
        with pytest.raises(DamagedError):
            verify(folder)


def test_a_local_shard_that_changes_while_it_is_open_is_read_again(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(tiny_data / "train", tmp_path / "train")
    monkeypatch.setattr("pipeline.data.open_shards.LOOK_AGAIN", 1)
    split = open_split(str(folder))
    key = split.load(0).key
    path = folder / split.manifest.shards[0].name
    offset, length = split.manifest.shards[0].samples[0].members["blur.npy"]
    with path.open("r+b") as stream:
        stream.seek(offset + length - 1)
        last = stream.read(1)
        stream.seek(offset + length - 1)
        stream.write(bytes([last[0] ^ 1]))
    with pytest.raises(DamagedError, match=rf"{key}: blur\.npy is damaged"):
        split.load(0)


def test_a_locked_cache_says_what_it_waits_for(
    tiny_data: Path,
    s3_server: S3Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    url = storage.join(s3_server.url, "train")
    upload(tiny_data / "train", url)
    monkeypatch.setattr("pipeline.data.node_locks.REPORT", 0.05)
    (tmp_path / "shards").mkdir()
    with ThreadPoolExecutor(1) as pool:
        with FileLock(tmp_path / "shards" / "cache.lock"):
            reading = pool.submit(lambda: open_split(url, str(tmp_path)).load(0))
            while "locked by another process" not in caplog.text:
                time.sleep(0.01)
        assert reading.result().key
