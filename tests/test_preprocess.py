"""Preprocess and verify: reproducible, resumable, and nothing wrong gets through unseen."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import skimage.data
from conftest import S3Server

from pipeline import storage
from pipeline.data.manifest import load_manifest
from pipeline.data.split import open_split
from pipeline.errors import StorageDown, UserError
from pipeline.images import read_image
from pipeline.preprocess import convert as convert_module
from pipeline.preprocess import preprocess
from pipeline.preprocess import run as preprocess_run
from pipeline.synthesize.psf import psf
from pipeline.verify import verify

SMALL_SHARDS = 60_000  # bytes


def picture(
    path: Path, seed: int, dtype: type = np.uint8, size: tuple[int, int] = (40, 48)
) -> None:
    """A smooth random photograph."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    image = cv2.resize(rng.random((6, 7, 3)), size[::-1], interpolation=cv2.INTER_CUBIC)
    image = np.clip(image + 0.03 * rng.random((*size, 3)), 0, 1)
    cv2.imwrite(str(path), (image * np.iinfo(dtype).max).astype(dtype))


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_same_input_gives_the_same_bytes_after_any_interruption(
    tiny_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.parallel_map.has_cluster", lambda: False)  # fails in this process
    done = preprocess("dpdd", str(tiny_pairs), str(tmp_path / "a"), shard_bytes=SMALL_SHARDS)
    assert done["splits"] == ["train", "val", "test"]
    assert done["samples"] == 12
    assert done["shards"] > 3
    real, count = preprocess_run.convert, 0

    def fails_after_two(job):  # type: ignore[no-untyped-def]
        nonlocal count
        count += 1
        if count > 2:
            raise KeyboardInterrupt
        return real(job)

    with monkeypatch.context() as patch:
        patch.setattr(preprocess_run, "convert", fails_after_two)
        with pytest.raises(KeyboardInterrupt):
            preprocess("dpdd", str(tiny_pairs), str(tmp_path / "b"), shard_bytes=SMALL_SHARDS)
    assert not list((tmp_path / "b").glob("*/manifest.json"))
    again = preprocess("dpdd", str(tiny_pairs), str(tmp_path / "b"), shard_bytes=SMALL_SHARDS)
    assert again == done
    assert bytes_of(tmp_path / "a") == bytes_of(tmp_path / "b")
    third = preprocess("dpdd", str(tiny_pairs), str(tmp_path / "b"), shard_bytes=SMALL_SHARDS)
    assert third == done


def soft_pairs(folder: Path, count: int, size: tuple[int, int], ending: str = "png") -> None:
    """16-bit pairs in two folders, the sharp ones as PNG."""
    for number in range(count):
        sharp = folder / "sharp" / f"{number:02d}.png"
        picture(sharp, number, np.uint16, size)
        image = cv2.imread(str(sharp), cv2.IMREAD_UNCHANGED)
        assert image is not None
        (folder / "blur").mkdir(exist_ok=True)
        blur = folder / "blur" / f"{number:02d}.{ending}"
        cv2.imwrite(str(blur), cv2.GaussianBlur(image, (5, 5), 2))


def test_killed_process_goes_on_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.parallel_map.has_cluster", lambda: False)
    soft_pairs(tmp_path / "in", 12, (300, 400))
    size = 2 * 300 * 400 * 12
    undisturbed = preprocess("folder", str(tmp_path / "in"), str(tmp_path / "a"), shard_bytes=size)
    program = (
        "import sys\nfrom pipeline import parallel_map\n"
        "from pipeline.preprocess import preprocess\n"
        "parallel_map.processors = lambda: 2  # not all shards at once\n"
        f"preprocess('folder', sys.argv[1], sys.argv[2], shard_bytes={size})"
    )
    split = tmp_path / "b" / "train"
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "in"), str(tmp_path / "b")],
        env={k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"},
    )
    try:
        while process.poll() is None:
            if list(split.glob(".parts/shard-*.json")) and list(split.glob(".*.era-part")):
                break
    finally:
        process.kill()
        process.wait()
    assert 0 < len(list(split.glob(".parts/shard-*.json"))) < 6
    assert list(split.glob(".*.era-part"))
    with monkeypatch.context() as patch:
        patch.setattr(preprocess_run, "publish", interrupted)
        with pytest.raises(KeyboardInterrupt):
            preprocess("folder", str(tmp_path / "in"), str(tmp_path / "b"), shard_bytes=size)
    assert not list(split.glob(".*.era-part"))  # gone as soon as the folder is claimed again
    again = preprocess("folder", str(tmp_path / "in"), str(tmp_path / "b"), shard_bytes=size)
    assert again == undisturbed
    assert bytes_of(tmp_path / "a") == bytes_of(tmp_path / "b")
    assert not list(split.glob(".*"))


def test_description_without_its_shard_is_not_trusted(
    tiny_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.parallel_map.has_cluster", lambda: False)
    whole, out = tmp_path / "a", tmp_path / "b"
    preprocess("dpdd", str(tiny_pairs), str(whole), shard_bytes=SMALL_SHARDS)
    with monkeypatch.context() as patch:
        patch.setattr(preprocess_run, "publish", interrupted)
        with pytest.raises(KeyboardInterrupt):
            preprocess("dpdd", str(tiny_pairs), str(out), shard_bytes=SMALL_SHARDS)
    first, second = sorted((out / "train").glob("*.tar"))[:2]
    first.unlink()
    second.write_bytes(second.read_bytes()[:-512])
    parts = sorted((out / "train" / ".parts").glob("shard-*.json"))
    for path, text in zip(parts[2:], ("{", json.dumps({"shard": 1}), "[]"), strict=False):
        path.write_text(text)
    whole_part = json.loads(parts[-1].read_text())
    parts[-1].write_text(json.dumps({"shard": whole_part["shard"]}))
    preprocess("dpdd", str(tiny_pairs), str(out), shard_bytes=SMALL_SHARDS)
    assert bytes_of(whole) == bytes_of(out)
    first.unlink()
    with pytest.raises(UserError, match=f"{first.name}: missing or cut short"):
        preprocess("dpdd", str(tiny_pairs), str(out), shard_bytes=SMALL_SHARDS)


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_cluster_and_a_bucket_give_the_same_bytes(
    tiny_pairs: Path, tmp_path: Path, s3_server: S3Server, ray_cluster: str
) -> None:
    dest = storage.join(s3_server.url, "data")
    preprocess("dpdd", str(tiny_pairs), str(tmp_path), shard_bytes=SMALL_SHARDS)
    preprocess("dpdd", str(tiny_pairs), dest, shard_bytes=SMALL_SHARDS)
    here = bytes_of(tmp_path)
    assert {e.relative for e in storage.find(dest)} == set(here)
    assert all(storage.read_bytes(storage.join(dest, name)) == data for name, data in here.items())
    assert verify(dest)["samples"] == verify(dest, quick=True)["samples"] == 12


def test_pixels_arrive_unchanged(tiny_pairs: Path, tiny_data: Path) -> None:
    split = open_split(str(tiny_data / "test"))
    sample = split.load(0)
    source = tiny_pairs / "test_c" / "source" / f"{sample.key}.png"
    assert np.array_equal(sample.blur, read_image(str(source)))
    assert sample.radius is not None
    name = f"test_c/source/{sample.key}.png"
    assert sample.meta["sources"][name] == hashlib.sha256(source.read_bytes()).hexdigest()
    assert np.array(sample.meta["sharpness"]).shape == (2, 2)
    assert (tiny_data / "test" / "contact.jpg").stat().st_size > 1000


@pytest.mark.parametrize(
    ("dataset", "files", "splits"),
    [
        ("realdof", {"source/01.png": 1, "target/01.png": 1}, {"test": 1}),
        ("rtf", {"image/0/image_01.png": 1, "GT/sharp_01.png": 1}, {"test": 1}),
        (
            "lfdof",
            {
                "train_data/input/IMG_1/IMG_1_ap1_01.png": 1,
                "train_data/input/IMG_1/IMG_1_ap2_01.png": 2,
                "train_data/ground_truth/IMG_1.png": 1,
                "train_data/input/.DS_Store": 3,
            },
            {"train": 2},
        ),
        ("cuhk", {"out_of_focus0006.jpg": 1, "out_of_focus0007.JPG": 2}, {"test": 2}),
        ("pixeldp", {"test_c/a.png": 1, "test_c/b.png": 2}, {"test": 2}),
        ("folder", {"blur/x.y.png": 1, "sharp/x.y.png": 1}, {"train": 1}),
        ("folder", {"val/blur/x.png": 1, "val/sharp/x.png": 1}, {"val": 1}),
        (
            "dpdd",
            {"train/inputC/1P0A1.png": 1, "train/target/1P0A2.png": 1},
            {"train": 1},
        ),
    ],
)
def test_layouts(
    dataset: str, files: dict[str, int], splits: dict[str, int], tmp_path: Path
) -> None:
    for number, (name, seed) in enumerate(files.items()):
        if name.endswith(".DS_Store"):
            (tmp_path / "in" / name).write_bytes(b"of the Finder")
            continue
        picture(tmp_path / "in" / name, seed)
        if "target" in name or "GT" in name or "sharp" in name or "ground_truth" in name:
            path = tmp_path / "in" / name
            image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
            cv2.imwrite(str(path), cv2.add(image, np.full_like(image, 1 + number)))
    if dataset == "lfdof":
        other = tmp_path / "in" / "train_data/input/IMG_1/IMG_1_ap2_01.png"
        image = cv2.imread(str(tmp_path / "in/train_data/input/IMG_1/IMG_1_ap1_01.png"))
        cv2.imwrite(str(other), cv2.GaussianBlur(image, (5, 5), 2))
    done = preprocess(dataset, str(tmp_path / "in"), str(tmp_path / "out"))
    assert done["samples"] == sum(splits.values())
    for split, count in splits.items():
        manifest, _ = load_manifest(str(tmp_path / "out" / split))
        assert manifest.samples == count
        assert manifest.sharp == (dataset not in ("cuhk", "pixeldp"))
        assert all("." not in key for key in open_split(str(tmp_path / "out" / split)).keys)
    verify(str(tmp_path / "out"))


def test_csv_of_pairs(tmp_path: Path) -> None:
    for name in ("a", "b"):
        picture(tmp_path / f"{name}.png", 1, np.uint16)
    image = cv2.imread(str(tmp_path / "b.png"), cv2.IMREAD_UNCHANGED)
    cv2.imwrite(str(tmp_path / "b.png"), cv2.GaussianBlur(image, (3, 3), 1))
    (tmp_path / "pairs.csv").write_text("split,blur,sharp\nval,a.png,b.png\n")
    done = preprocess("folder", str(tmp_path / "pairs.csv"), str(tmp_path / "out"))
    assert done["splits"] == ["val"]


CSV = "split,blur,sharp\nval,blur/00.png,sharp/00.png\n"
SPREADSHEETS = {
    "byte order mark": "\ufeff" + CSV,
    "CR": CSV.replace("\n", "\r"),
    "CR LF": "\ufeff" + CSV.replace("\n", "\r\n"),
    "semicolons": CSV.replace(",", ";"),
    "quoted": CSV.replace("blur/00.png", '"blur/00.png"'),
    "spaces and capitals": CSV.replace(",", ", ").replace("sharp\n", "Sharp \n", 1),
    "absolute": CSV,  # with the folder in front of the names
    "empty columns and rows": CSV.replace("\n", ",,\n") + ",,,,\n",
}


def test_csv_as_spreadsheets_save_it(tmp_path: Path) -> None:
    soft_pairs(tmp_path, 1, (40, 48))
    shards = set()
    for name, text in SPREADSHEETS.items():
        if name == "absolute":
            text = text.replace("blur/", f"{tmp_path}/blur/").replace(
                "sharp/", f"{tmp_path}/sharp/"
            )
        (tmp_path / "pairs.csv").write_bytes(text.encode())
        preprocess("folder", str(tmp_path / "pairs.csv"), str(tmp_path / name))
        shards.add((tmp_path / name / "val" / "shard-00000.tar").read_bytes())
    assert len(shards) == 1
    for text in (
        "split,blur\nval,a\0.png\n",
        'split,blur\n"a',
        "split,blur\nval," + "x" * 200_000 + "\n",
        "split,blur,sharp\nval,a.png,../b.png\n",
        "split,blur,blur\nval,a.png,b.png\n",
        "split,blur,gt\nval,a.png,b.png\n",
        "split,blur,sharp\nval,/elsewhere/a.png,/elsewhere/b.png\n",
        "split,blur,sharp\nval,s3://b/a.png,b.png\n",
    ):
        (tmp_path / "pairs.csv").write_text(text)
        refused = r"pairs\.csv(, line 2|: not valid CSV after line 1|: (the|no) column)"
        with pytest.raises(UserError, match=refused):
            preprocess("folder", str(tmp_path / "pairs.csv"), str(tmp_path / "out"))


def test_any_name_becomes_a_key(tmp_path: Path) -> None:
    """Long, foreign, superscript, not UTF-8; hidden files of other programs are passed over."""
    names = ["b" * 200, "b" * 199 + "c", "²1", "²10", "ж" * 100, "a b\nc", os.fsdecode(b"\xff")]
    for number, name in enumerate(names):
        picture(tmp_path / "some.png", number)
        image = cv2.imread(str(tmp_path / "some.png"))
        assert image is not None
        for folder, pixels in (("blur", cv2.GaussianBlur(image, (5, 5), 2)), ("sharp", image)):
            path = tmp_path / "in" / folder / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(bytes(cv2.imencode(".png", pixels)[1]))
    for hidden in ("._²1.png", ".DS_Store", "Thumbs.db", "desktop.ini"):
        (tmp_path / "in" / "blur" / hidden).write_bytes(b"Mac OS X")
    done = preprocess("folder", str(tmp_path / "in"), str(tmp_path / "out"))
    assert done["samples"] == len(names)
    split = open_split(str(tmp_path / "out" / "train"))
    assert all(len(key.encode()) <= 89 for key in split.keys)
    assert {name for i in range(len(names)) for name in split.load(i).meta["sources"]} == {
        f"{folder}/{os.fsencode(name).decode('utf-8', 'backslashreplace')}.png"
        for name in names
        for folder in ("blur", "sharp")
    }
    with tarfile.open(tmp_path / "out" / "train" / "shard-00000.tar") as tar:
        assert len(tar.getnames()) == 3 * len(names)


def test_two_at_once_are_told_of_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.parallel_map.has_cluster", lambda: False)
    soft_pairs(tmp_path / "in", 2, (40, 48))
    arguments = ("folder", str(tmp_path / "in"), str(tmp_path / "out"))
    program = (
        "import sys; from pipeline.preprocess.ownership import sole_writer\n"
        "with sole_writer(sys.argv[1]): print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, arguments[2]]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdin is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match=f"process {other.pid} is preprocessing into it"):
            preprocess(*arguments)
        other.stdin.close()
    # In a bucket nothing is locked: the newest claim wins.
    real = preprocess_run.convert

    def taken_over(job):  # type: ignore[no-untyped-def]
        claim = tmp_path / "out" / "train" / ".parts" / "claim.json"
        claim.write_text(json.dumps({**json.loads(claim.read_text()), "holder": "process 7 on b"}))
        return real(job)

    with monkeypatch.context() as patch:
        patch.setattr(preprocess_run, "convert", taken_over)
        with pytest.raises(UserError, match="process 7 on b has taken over"):
            preprocess(*arguments)
    assert not list((tmp_path / "out").glob("*/manifest.json"))
    assert preprocess(*arguments)["samples"] == 2


def test_wide_blur_is_no_shift(tmp_path: Path) -> None:
    """The phases that a disk turns look like a shift of 10 pixels here."""
    sharp = np.ascontiguousarray(skimage.data.astronaut()[:320, :320, ::-1])
    cv2.imwrite(str(tmp_path / "sharp.png"), sharp)
    cv2.imwrite(str(tmp_path / "blur.png"), cv2.filter2D(sharp, -1, psf("disk", 18.0)))
    (tmp_path / "pairs.csv").write_text("split,blur,sharp\nval,blur.png,sharp.png\n")
    done = preprocess("folder", str(tmp_path / "pairs.csv"), str(tmp_path / "out"))
    assert (done["samples"], done["skipped"]) == (1, 0)


def pairs_copy(tiny_pairs: Path, target: Path) -> Path:
    return Path(shutil.copytree(tiny_pairs, target))


def spoil_text(folder: Path) -> str:
    path = sorted((folder / "train_c" / "source").iterdir())[1]
    path.write_text("this is no picture")
    return f"{path.name}: not an image"


def spoil_bits(folder: Path) -> str:
    path = sorted((folder / "train_c" / "target").iterdir())[1]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    return f"{path.name}: not an image that can be read, or a damaged one"


def spoil_size(folder: Path) -> str:
    path = sorted((folder / "train_c" / "target").iterdir())[0]
    picture(path, 1, np.uint16, (30, 30))
    return "not a pair"


def spoil_duplicate(folder: Path) -> str:
    train = sorted((folder / "train_c" / "source").iterdir())[0]
    test = sorted((folder / "test_c" / "source").iterdir())[0]
    shutil.copy(train, test)
    return "is the same picture as"


def spoil_flat(folder: Path) -> str:
    path = sorted((folder / "train_c" / "source").iterdir())[2]
    cv2.imwrite(str(path), np.full((48, 56, 3), 30000, np.uint16))
    return "the picture is flat"


def spoil_scene(folder: Path) -> str:
    path = sorted((folder / "train_c" / "target").iterdir())[2]
    picture(path, 77, np.uint16, (48, 56))
    return "not the same scene"


def spoil_shift(folder: Path) -> str:
    path = sorted((folder / "train_c" / "target").iterdir())[2]
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    cv2.imwrite(str(path), np.roll(image, (2, 3), (0, 1)))
    return "shifted against each other by 3, 2 pixels"


def spoil_pixels(folder: Path) -> str:
    """The same pixels in two different files."""
    source = sorted((folder / "train_c" / "source").iterdir())[2]
    target = sorted((folder / "train_c" / "target").iterdir())[2]
    image = cv2.imread(str(source), cv2.IMREAD_UNCHANGED)
    assert image is not None
    cv2.imwrite(str(target), image, [cv2.IMWRITE_PNG_COMPRESSION, 0])
    return "the same pixels"


def spoil_orientation(folder: Path) -> str:
    """EXIF turns one of two equally large pictures by half a circle."""
    path = sorted((folder / "train_c" / "target").iterdir())[2]
    data = path.read_bytes()
    tiff = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x03\0\0\0\0\0\0\0"
    chunk = b"eXIf" + tiff
    sum_of = zlib.crc32(chunk).to_bytes(4, "big")
    path.write_bytes(data[:33] + len(tiff).to_bytes(4, "big") + chunk + sum_of + data[33:])
    return "different EXIF orientations (3 and 1)"


def spoil_small(folder: Path) -> str:
    paths = [sorted((folder / "test_c" / k).iterdir())[0] for k in ("source", "target", "radius")]
    for path in paths:
        image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        assert image is not None
        cv2.imwrite(str(path), image[:40, :1])
    return f"{paths[0].name} has 1x40 pixels; at least 32 on each side are needed"


SPOILERS = [spoil_text, spoil_bits, spoil_size, spoil_duplicate, spoil_flat, spoil_scene]
SPOILERS += [spoil_shift, spoil_pixels, spoil_orientation, spoil_small]


@pytest.mark.parametrize("spoil", SPOILERS)
def test_bad_pairs_stop_or_are_set_aside(spoil, tiny_pairs: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    folder = pairs_copy(tiny_pairs, tmp_path / "in")
    message = spoil(folder)
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        preprocess("dpdd", str(folder), str(tmp_path / "out"))
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "out").glob("*/manifest.json"))
    done = preprocess("dpdd", str(folder), str(tmp_path / "out"), skip_bad=True)
    assert done["samples"] == 11
    assert done["skipped"] == 1
    assert done["incomplete"]
    listed = [json.loads(p.read_text()) for p in (tmp_path / "out").glob("*/skipped.json")]
    assert message.split(":")[-1].strip() in listed[0][0]["reason"]
    verify(str(tmp_path / "out"))
    assert preprocess("dpdd", str(folder), str(tmp_path / "out"), skip_bad=True) == done


def test_what_passes_is_no_fault_of_a_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a silent storage nor want of memory is remembered against a pair."""
    monkeypatch.setattr("pipeline.parallel_map.has_cluster", lambda: False)
    soft_pairs(tmp_path / "in", 3, (40, 48))
    arguments = "folder", str(tmp_path / "in"), str(tmp_path / "out")

    def failing(error: Exception) -> Callable[..., Any]:
        def load(job: Any, pair: Any) -> Any:
            if pair.key == "01":
                raise error
            return real(job, pair)

        return load

    real = convert_module._load
    for error, kind in ((StorageDown("no answer"), StorageDown), (MemoryError(), UserError)):
        with monkeypatch.context() as patch:
            patch.setattr(convert_module, "_load", failing(error))
            with pytest.raises(kind):
                preprocess(*arguments, skip_bad=True)
    assert preprocess(*arguments)["samples"] == 3


def test_a_list_of_an_interrupted_call_does_not_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.parallel_map.has_cluster", lambda: False)
    soft_pairs(tmp_path / "in", 3, (40, 48))
    arguments = "folder", str(tmp_path / "in"), str(tmp_path / "out")
    with monkeypatch.context() as patch:
        real = convert_module._load
        said = UserError("an odd fault that passes")
        patch.setattr(
            convert_module,
            "_load",
            lambda job, pair: _raised(said) if pair.key == "01" else real(job, pair),
        )
        patch.setattr("pipeline.data.manifest.Manifest.to_json", interrupted)
        with pytest.raises(KeyboardInterrupt):
            preprocess(*arguments, skip_bad=True)
    assert (tmp_path / "out" / "train" / "skipped.json").exists()
    for _ in range(2):
        done = preprocess(*arguments)
        assert (done["samples"], done["skipped"]) == (3, 0)


def _raised(error: Exception) -> None:
    raise error


def test_bad_pairs_have_any_name(tmp_path: Path) -> None:
    soft_pairs(tmp_path / "in", 2, (40, 48))
    for kind in ("blur", "sharp"):
        folder = tmp_path / "in" / kind
        (folder / "00.png").rename(Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.png")))
    flat = next(path for path in (tmp_path / "in" / "blur").iterdir() if "caf" in path.name)
    cv2.imwrite(str(tmp_path / "flat.png"), np.full((40, 48, 3), 90, np.uint16))
    (tmp_path / "flat.png").rename(flat)
    done = preprocess("folder", str(tmp_path / "in"), str(tmp_path / "out"), skip_bad=True)
    assert (done["samples"], done["skipped"]) == (1, 1)


def test_of_equal_keys_one_stays(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for folder in ("a", "b"):
        soft_pairs(tmp_path / folder, 2 if folder == "a" else 1, (40, 48))
    image = cv2.imread(str(tmp_path / "b" / "blur" / "00.png"), cv2.IMREAD_UNCHANGED)
    assert image is not None
    cv2.imwrite(str(tmp_path / "b" / "blur" / "00.png"), image[::-1])  # other pictures
    cv2.imwrite(str(tmp_path / "b" / "sharp" / "00.png"), image)
    for kind in ("blur", "sharp"):  # a copy and a damaged one of the same name
        (tmp_path / "c" / kind).mkdir(parents=True)
        shutil.copy(tmp_path / "a" / kind / "01.png", tmp_path / "c" / kind / "01.png")
        (tmp_path / "b" / kind / "01.png").write_text("no picture")
    pairs = [f"train,{folder}/blur/{n}.png,{folder}/sharp/{n}.png" for folder, n in
             (("a", "00"), ("a", "01"), ("b", "00"), ("b", "01"), ("c", "01"))]  # fmt: skip
    (tmp_path / "pairs.csv").write_text("split,blur,sharp\n" + "\n".join([*pairs, pairs[1]]))
    arguments = "folder", str(tmp_path / "pairs.csv"), str(tmp_path / "out")
    with caplog.at_level("WARNING", "era"):
        done = preprocess(*arguments, skip_bad=True)
    assert (done["samples"], done["skipped"]) == (2, 3)
    assert open_split(str(tmp_path / "out" / "train")).keys == ["00", "01"]
    assert "1 rows are there again" in caplog.text


def test_pictures_corrected_after_a_conversion_say_what_to_remove(tmp_path: Path) -> None:
    soft_pairs(tmp_path / "in", 2, (40, 48))
    good = (tmp_path / "in" / "blur" / "01.png").read_bytes()
    cv2.imwrite(str(tmp_path / "in" / "blur" / "01.png"), np.full((40, 48, 3), 90, np.uint16))
    arguments = "folder", str(tmp_path / "in"), str(tmp_path / "out")
    with pytest.raises(UserError, match="flat"):
        preprocess(*arguments)
    (tmp_path / "in" / "blur" / "01.png").write_bytes(good)
    with pytest.raises(
        UserError, match=r"out/train: an unfinished conversion .* remove the folder"
    ):
        preprocess(*arguments)
    shutil.rmtree(tmp_path / "out" / "train")
    assert preprocess(*arguments)["samples"] == 2


def test_a_split_of_which_nothing_is_left_is_refused(tiny_pairs: Path, tmp_path: Path) -> None:
    folder = pairs_copy(tiny_pairs, tmp_path / "in")
    for number, path in enumerate(sorted((folder / "test_c" / "source").iterdir())):
        cv2.imwrite(str(path), np.full((48, 56, 3), 30000 + number, np.uint16))
    with pytest.raises(UserError, match="split test: no sound pair is left"):
        preprocess("dpdd", str(folder), str(tmp_path / "out"), skip_bad=True)
    assert not list((tmp_path / "out").glob("*/manifest.json"))


def test_all_problems_are_listed_at_once(
    tiny_pairs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = pairs_copy(tiny_pairs, tmp_path / "in")
    spoil_text(folder), spoil_size(folder)
    with pytest.raises(UserError, match="and 1 more"), caplog.at_level("WARNING", "era"):
        preprocess("dpdd", str(folder), str(tmp_path / "out"))


def test_problems_of_pairs_and_of_splits_are_listed_together(
    tiny_pairs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = pairs_copy(tiny_pairs, tmp_path / "in")
    spoil_text(folder), spoil_size(folder)
    unpaired = sorted((folder / "val_c" / "source").iterdir())[0]
    unpaired.write_text("no picture either")
    sorted((folder / "val_c" / "target").iterdir())[0].unlink()
    for skip_bad in (False, True):  # a split that cannot be paired is nothing to set aside
        caplog.clear()
        with (
            pytest.raises(UserError, match=r"counts must be equal \(and 3 more"),
            caplog.at_level("WARNING", "era"),
        ):
            preprocess("dpdd", str(folder), str(tmp_path / "out"), skip_bad=skip_bad)
        for text in ("counts must be equal", unpaired.name, "not an image", "not a pair"):
            assert text in caplog.text
    assert not (tmp_path / "out").exists()


def test_a_thumbnail_among_photographs_would_limit_every_crop(tmp_path: Path) -> None:
    soft_pairs(tmp_path, 3, (100, 120))
    for kind in ("blur", "sharp"):
        path = tmp_path / kind / "01.png"
        image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        assert image is not None
        cv2.imwrite(str(path), image[:40, :40])
    with pytest.raises(UserError, match=r"01.png has 40x40 pixels, less than half of .* \(100"):
        preprocess("folder", str(tmp_path), str(tmp_path / "out"))


def test_pairs_of_a_folder_go_by_their_names(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    soft_pairs(tmp_path / "in", 4, (48, 56))
    (tmp_path / "in" / "blur" / "01.png").unlink()
    (tmp_path / "in" / "sharp" / "02.png").unlink()
    (tmp_path / "in" / "sharp" / "03.png").rename(tmp_path / "in" / "sharp" / "03.PNG")
    with pytest.raises(UserError, match=r"blur/02\.png has no partner of that name in sharp"):
        preprocess("folder", str(tmp_path / "in"), str(tmp_path / "out"))
    done = preprocess("folder", str(tmp_path / "in"), str(tmp_path / "out"), skip_bad=True)
    assert (done["samples"], done["skipped"]) == (2, 2)
    assert open_split(str(tmp_path / "out" / "train")).keys == ["00", "03"]
    (tmp_path / "in" / "radius").mkdir()
    shutil.copy(tmp_path / "in" / "blur" / "00.png", tmp_path / "in" / "radius" / "00_r.png")
    with pytest.raises(UserError, match="and 2 more"):
        preprocess("folder", str(tmp_path / "in"), str(tmp_path / "other"))
    assert "radius/00_r.png has no partner of that name in blur" in caplog.text
    for path in (tmp_path / "in" / "sharp").iterdir():
        path.rename(path.with_name(f"sharp{path.name}"))
    with pytest.raises(UserError, match="no image has the name of one in"):
        preprocess("folder", str(tmp_path / "in"), str(tmp_path / "other"), skip_bad=True)
    (tmp_path / "in" / "blur").rename(tmp_path / "in" / "blurred")
    with pytest.raises(UserError, match="no image has the name of one in"):
        preprocess("folder", str(tmp_path / "in"), str(tmp_path / "other"), skip_bad=True)


def test_two_pictures_of_one_name_are_refused(tmp_path: Path) -> None:
    soft_pairs(tmp_path, 2, (48, 56))
    shutil.copy(tmp_path / "blur" / "00.png", tmp_path / "blur" / "01.tif")
    with pytest.raises(UserError, match=r"blur/01\.tif and blur/01\.png have one name"):
        preprocess("folder", str(tmp_path), str(tmp_path / "out"))


def test_a_destination_that_leads_nowhere_is_one_line(tmp_path: Path) -> None:
    soft_pairs(tmp_path / "in", 1, (48, 56))
    (tmp_path / "out").symlink_to(tmp_path / "gone" / "away")
    with pytest.raises(UserError, match=r"out: "):
        preprocess("folder", str(tmp_path / "in"), str(tmp_path / "out"))


def test_bit_depths_are_those_of_the_files(tmp_path: Path) -> None:
    soft_pairs(tmp_path / "in", 2, (40, 48), "tif")  # 16 bits, as the PNGs beside
    assert preprocess("folder", str(tmp_path / "in"), str(tmp_path / "out"))["samples"] == 2
    assert open_split(str(tmp_path / "out" / "train")).load(0).meta["bit_depth"] == 16
    picture(tmp_path / "in" / "blur" / "01.tif", 1, np.uint8)
    with pytest.raises(UserError, match="different bit depths"):
        preprocess("folder", str(tmp_path / "in"), str(tmp_path / "other"))


def test_a_photograph_that_was_cut_is_refused(tmp_path: Path) -> None:
    """A decoder fills the rest of a cut JPEG with grey and says nothing."""
    soft_pairs(tmp_path / "in", 1, (200, 200))
    image = cv2.imread(str(tmp_path / "in" / "blur" / "00.png"))
    assert image is not None
    for folder, length in (("blur", None), ("sharp", -2000)):
        (tmp_path / "in" / folder / "00.png").unlink()
        noisy = cv2.add(image, np.random.default_rng(len(folder)).integers(0, 9, image.shape, "u1"))
        data = bytes(cv2.imencode(".jpg", noisy)[1])
        (tmp_path / "in" / folder / "00.jpg").write_bytes(data[:length])
    with pytest.raises(UserError, match=r"sharp/00\.jpg: not an image that can be read"):
        preprocess("folder", str(tmp_path / "in"), str(tmp_path / "out"))


def test_what_cannot_be_a_data_set(tiny_pairs: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no image found"):
        preprocess("dpdd", str(tmp_path / "empty"), str(tmp_path / "out"))
    with pytest.raises(UserError, match="no such folder"):
        preprocess("dpdd", str(tmp_path / "nowhere"), str(tmp_path / "out"))
    with pytest.raises(UserError, match="unknown; known: dpdd"):
        preprocess("dppd", str(tiny_pairs), str(tmp_path / "out"))
    folder = pairs_copy(tiny_pairs, tmp_path / "in")
    next((folder / "val_c" / "target").iterdir()).unlink()
    with pytest.raises(UserError, match="counts must be equal"):
        preprocess("dpdd", str(folder), str(tmp_path / "out"))


def test_destination_with_something_else_is_refused(
    tiny_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.parallel_map.has_cluster", lambda: False)
    soft_pairs(tmp_path / "in", 2, (40, 48))  # has a split `train` only
    for name in ("thesis.txt", "train/thesis.txt", "train/sub/thesis.txt", "test/thesis.txt"):
        out = tmp_path / name.replace("/", "-")
        (out / name).parent.mkdir(parents=True)
        (out / name).write_text("x")
        with pytest.raises(UserError, match="holds something else"):
            preprocess("folder", str(tmp_path / "in"), str(out))
        assert list(bytes_of(out)) == [name]
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(preprocess_run, "publish", interrupted)
        with pytest.raises(KeyboardInterrupt):
            preprocess("folder", str(tmp_path / "in"), str(out))
    (out / "train" / "thesis.txt").write_text("x")
    with pytest.raises(UserError, match=r"holds something else \(thesis\.txt\)"):
        preprocess("folder", str(tmp_path / "in"), str(out))
    (out / "train" / "thesis.txt").unlink()
    preprocess("folder", str(tmp_path / "in"), str(out))
    with pytest.raises(UserError, match="train: holds something else"):  # another `train`
        preprocess("dpdd", str(tiny_pairs), str(out))
    (tmp_path / "in").rename(tmp_path / "in2")
    (tmp_path / "in" / "val").mkdir(parents=True)
    (tmp_path / "in2").rename(tmp_path / "in" / "val" / "x")
    for kind in ("blur", "sharp"):
        (tmp_path / "in" / "val" / "x" / kind).rename(tmp_path / "in" / "val" / kind)
    done = preprocess("folder", str(tmp_path / "in"), str(out))  # one more split is welcome
    assert done["splits"] == ["val"]


def test_verify_names_every_damage(tiny_data: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_data, tmp_path / "data"))
    manifest, _ = load_manifest(str(folder / "train"))
    entry = manifest.shards[0].samples[0]
    path = folder / "train" / manifest.shards[0].name
    whole = path.read_bytes()

    def spoiled(offset: int) -> None:
        data = bytearray(whole)
        data[offset] ^= 255
        path.write_bytes(data)

    offset, length = entry.members["blur.npy"]
    spoiled(offset + length - 1)  # a pixel: only the checksum sees it
    verify(str(folder), quick=True)
    with pytest.raises(UserError, match=f"{path.name}: sample {entry.key}: blur.npy is damaged"):
        verify(str(folder))
    spoiled(offset - 200)  # in the tar's own header, where nothing reads: between the members
    with pytest.raises(UserError, match=f"{path.name}: its"):
        verify(str(folder))
    spoiled(offset + 2)  # the array's header
    for quick in (False, True):
        with pytest.raises(UserError, match=manifest.shards[0].name):
            verify(str(folder / "train"), quick=quick)
    path.write_bytes(whole[:-512])
    with pytest.raises(UserError, match=f"{len(whole) - 512} bytes instead of {len(whole)}"):
        verify(str(folder), quick=True)
    path.unlink()
    with pytest.raises(UserError, match=f"{path.name}: missing"):
        verify(str(folder))
    with pytest.raises(UserError, match=r"no manifest\.json there"):
        verify(str(tmp_path))
