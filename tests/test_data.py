"""Shards, manifest, cache and loader."""

from __future__ import annotations

import hashlib
import json
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset as wds
from conftest import S3Server

from pipeline import storage
from pipeline.data.augment import flip, to_device
from pipeline.data.cache import ShardCache
from pipeline.data.loader import Batch, TrainLoader
from pipeline.data.manifest import load_manifest
from pipeline.data.order import OrderPlan
from pipeline.data.split import Split, open_split
from pipeline.errors import UserError
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


def damaged_copy(source: Path, target: Path) -> tuple[Path, str]:
    """A copy of a split whose first shard's first sharp image is overwritten."""
    shutil.copytree(source, target)
    manifest, _ = load_manifest(str(target))
    entry = manifest.shards[0].samples[0]
    path = target / manifest.shards[0].name
    data = bytearray(path.read_bytes())
    offset = entry.members["sharp.npy"][0]
    data[offset : offset + 100] = bytes(100)
    path.write_bytes(data)
    return target, entry.key


def test_damaged_sample_stops_with_its_name_or_is_skipped(tiny_data: Path, tmp_path: Path) -> None:
    folder, key = damaged_copy(tiny_data / "train", tmp_path / "train")
    split = open_split(str(folder))
    with pytest.raises(UserError, match=f"{key}.*sharp.npy is damaged"):
        samples(loader(split))
    lenient = loader(split, skip_damaged=True)
    seen = samples(lenient)
    assert len(seen) == PLAN.steps * PLAN.global_batch
    assert list(lenient.skipped) == [key]
    assert not any(name.startswith(key) for name, _ in seen)


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
    monkeypatch.setattr("pipeline.storage.download", None)  # nothing is downloaded twice
    assert samples(loader(open_split(url, str(tmp_path)))) == local


def test_cache_stays_within_its_limit_and_refuses_damage(
    tiny_data: Path, s3_server: S3Server, tmp_path: Path
) -> None:
    url = storage.join(s3_server.url, "train")
    upload(tiny_data / "train", url)
    manifest, _ = load_manifest(url)
    largest = max(shard.bytes for shard in manifest.shards)
    cache = ShardCache(tmp_path, 2 * largest / 1e9)
    for shard in manifest.shards:
        cache.fetch(storage.join(url, shard.name), shard)
        held = sum(path.stat().st_size for path in tmp_path.glob("*.tar"))
        assert held <= 2 * largest
    wrong = replace(manifest.shards[0], sha256="0" * 64)
    with pytest.raises(UserError, match="damaged: its sha256"):
        cache.fetch(storage.join(url, wrong.name), wrong)
    with pytest.raises(UserError, match="less than one shard"):
        ShardCache(tmp_path, 1e-6).fetch(storage.join(url, wrong.name), wrong)


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
