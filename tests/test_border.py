"""What comes from outside is refused in one line that names the file and the place."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import S3Server

from pipeline import storage
from pipeline.border import BadInput, parse_json
from pipeline.data.entries import Entries
from pipeline.data.manifest import load_manifest, parse_manifest
from pipeline.data.split import open_split
from pipeline.errors import UserError
from pipeline.verify import verify

HOSTILE: list[tuple[str, Any, str]] = [
    ("name", "/etc/passwd", "plain file name"),
    ("name", "../shard.tar", "plain file name"),
    ("name", "a/b.tar", "plain file name"),
    ("name", "..", "plain file name"),
    ("name", "", "plain file name"),
    ("name", "a\0.tar", "plain file name"),
    ("name", "a\n.tar", "plain file name"),
    ("name", "x" * 5000, "at most 200"),
    ("sha256", "../../../victim", "64 hexadecimal digits"),
    ("sha256", "0" * 63, "64 hexadecimal digits"),
    ("sha256", "0" * 64 + "\n", "64 hexadecimal digits"),
    ("sha256", "A" * 64, "64 hexadecimal digits"),
    ("bytes", 0, "at least 1"),
    ("bytes", 10**18 * 9, "below"),
    ("bytes", 1.5, "whole number"),
    ("samples", {}, "a list"),
]


@pytest.mark.parametrize(("field", "value", "expected"), HOSTILE)
def test_hostile_shards_are_refused_where_the_manifest_is_read(
    field: str, value: Any, expected: str, tiny_data: Path, tmp_path: Path
) -> None:
    manifest = json.loads((tiny_data / "train" / "manifest.json").read_text())
    manifest["shards"][0][field] = value
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    for use in (load_manifest, open_split, verify):
        with pytest.raises(UserError) as refused:
            use(str(tmp_path))
        message = str(refused.value)
        assert str(tmp_path / "manifest.json") in message
        assert f"shards[0].{field}" in message
        assert expected in message
        assert "\n" not in message
        assert len(message) < 500


SAMPLE_CHANGES: list[Callable[[dict[str, Any]], object]] = [
    lambda sample: None,
    lambda sample: sample.pop("crc32"),
    lambda sample: sample["crc32"].pop("blur.npy"),
    lambda sample: sample["members"].pop("radius.npy", None),
    lambda sample: sample["members"].pop("sharp.npy"),
    lambda sample: sample["members"].pop("json"),
    lambda sample: sample["members"].update({"json": [0, -1]}),
    lambda sample: sample["members"].update({"blur.npy": [1 << 60, 1]}),
    lambda sample: sample["crc32"].update({"json": 1 << 32}),
    lambda sample: sample.update(key="twice"),
    lambda sample: sample.update(key="a.b"),
    lambda sample: sample.update(key="Ünïcode"),
    lambda sample: sample.update(key='quo"te'),
    lambda sample: sample.update(key="k" * 201),
    lambda sample: sample.update(height=0),
    lambda sample: sample.update(width=(1 << 20) + 1),
    lambda sample: sample.update(height=True),
    lambda sample: sample.update(height=1e3),
    lambda sample: sample.update(unknown=1),
]


@pytest.mark.parametrize("change", SAMPLE_CHANGES)
def test_usual_and_other_layouts_of_a_manifest_mean_the_same(
    change: Callable[[dict[str, Any]], object], tiny_data: Path
) -> None:
    values = json.loads((tiny_data / "train" / "manifest.json").read_text())
    samples = values["shards"][-1]["samples"]
    change(samples[-1])
    if samples[-1]["key"] == "twice":
        samples[0]["key"] = "twice"
    outcomes: list[Any] = []
    for indent in (1, None, 2):
        try:
            read = parse_manifest(json.dumps(values, indent=indent).encode(), "manifest.json")
            outcomes.append([(s.name, s.bytes, s.sha256, list(s.samples)) for s in read.shards])
        except UserError as error:
            outcomes.append(str(error))
    assert outcomes[0] == outcomes[1] == outcomes[2]


def test_pickled_samples_leave_the_rest_of_the_manifest_behind(tiny_data: Path) -> None:
    samples = load_manifest(str(tiny_data / "train"))[0].shards[0].samples
    assert isinstance(samples, Entries)
    assert pickle.loads(pickle.dumps(samples)) == list(samples)
    assert list(samples[-1:]) == [samples[-1]]


def test_two_shards_of_one_name_and_samples_outside_are_refused(
    tiny_data: Path, tmp_path: Path
) -> None:
    text = (tiny_data / "train" / "manifest.json").read_text()
    manifest = json.loads(text)
    manifest["shards"].append(manifest["shards"][0])
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="is there twice"):
        load_manifest(str(tmp_path))
    manifest = json.loads(text)
    manifest["shards"][0]["samples"][0]["members"]["blur.npy"] = [0, 1 << 60]
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="lies outside its shard"):
        load_manifest(str(tmp_path))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a": NaN}', "NaN is not a number"),
        ('{"a": -Infinity}', "-Infinity is not a number"),
        ('{"a": 1e400}', "too large"),
        ('{"a": ' + "9" * 400 + "}", "400 digits"),
        ('{"a": 1, "a": 2}', '"a" is there twice'),
        ('{"a": "\\ud800"}', "half a character"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a": ', "at line 1"),
        ("\xff", "not UTF-8"),
    ],
)
def test_json_is_strict(text: str, expected: str) -> None:
    with pytest.raises(BadInput, match=expected) as refused:
        parse_json(text.encode("latin-1"), "bucket/file.json")
    assert str(refused.value).startswith("bucket/file.json: not valid JSON")
    with pytest.raises(BadInput, match="at most 3 are read"):
        parse_json(b"[1,2]", "file", most=3)


def test_verify_of_a_bucket_writes_nowhere_else(s3_server: S3Server, tmp_path: Path) -> None:
    """The attack that once worked: a shard named by the path of the user's own file."""
    victim = tmp_path / "victim"
    victim.write_text("mine")
    split = f"{s3_server.url}/hostile"
    shard = {"name": str(victim), "bytes": 4, "sha256": "0" * 64, "samples": []}
    manifest = {
        "format": "era-shards/1",
        **{"dataset": "d", "split": "train", "bit_depth": 16, "sharp": True, "radius": False},
        **{"samples": 0, "bytes": 4, "shards": [shard], "statistics": {}},
    }
    storage.write_json(f"{split}/manifest.json", manifest)
    storage.write_bytes(f"{split}{victim}", b"evil")
    with pytest.raises(UserError, match="plain file name"):
        verify(split)
    assert victim.read_text() == "mine"


def test_a_changed_copy_in_the_cache_is_fetched_again(
    tiny_data: Path, s3_server: S3Server, tmp_path: Path
) -> None:
    url = f"{s3_server.url}/changed"
    for path in (tiny_data / "train").iterdir():
        if path.is_file():
            storage.upload(path, f"{url}/{path.name}")
    good = open_split(url, str(tmp_path)).load(0).blur
    for copy in tmp_path.glob("**/*.tar"):
        raw = bytearray(copy.read_bytes())
        for place in range(3000, len(raw), 7):
            raw[place] ^= 0x55
        copy.write_bytes(raw)
        os.utime(copy, (1, 1))  # where the clock of files has ticks, both writes may be in one
    assert (open_split(url, str(tmp_path)).load(0).blur == good).all()
