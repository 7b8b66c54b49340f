"""The contest of networks: its photographs, its clock, its bookkeeping."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.errors import UserError

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))


def test_what_trains_is_free_and_no_photograph_is_in_two_splits() -> None:
    from benchmarks.photos import FREE, listed

    photos = listed()
    assert {photo.split for photo in photos} == {"train", "val", "test"}
    assert all(photo.licence in FREE for photo in photos if photo.split != "test")
    assert len({photo.sha256 for photo in photos}) == len(photos)
    assert len({photo.name for photo in photos}) == len(photos)


def test_photographs_are_the_listed_ones_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks import photos

    bundled = [photo for photo in photos.listed() if photo.package == photos.BUNDLED]
    monkeypatch.setattr(photos, "listed", lambda: bundled)
    photos.extract(tmp_path)
    found = {p.parent.name: p for p in tmp_path.rglob("*.*")}
    assert set(found) == {"train", "val"}
    found["train"].write_bytes(b"half")
    photos.extract(tmp_path)  # what is damaged is fetched again
    assert found["train"].stat().st_size > 1000
    other = bundled[0]._replace(sha256="0" * 64)
    monkeypatch.setattr(photos, "listed", lambda: [other])
    with pytest.raises(UserError, match="another file than"):
        photos.extract(tmp_path)


@pytest.fixture
def pairs() -> Any:
    """Four pairs of noise; each picture's colour says which it is."""
    from benchmarks.contest import SIDE, Pairs

    rng = np.random.default_rng(0)
    sharp = rng.integers(0, 1000, (4, SIDE, SIDE, 3)).astype(np.uint16)
    sharp[..., 0] += (1 + np.arange(4, dtype=np.uint16))[:, None, None] * 10_000
    return Pairs(sharp + 1, sharp, (sharp[..., 1] / 4).astype(np.uint16))


def test_crops_are_cut_and_turned_alike(pairs: Any) -> None:
    from benchmarks.contest import BATCH, CROP, crops

    batches = crops(pairs, seed=3)
    for _ in range(3):
        blur, sharp, radius = next(batches)
        assert blur.shape == sharp.shape == (BATCH, 3, CROP, CROP)
        torch.testing.assert_close(blur - sharp, torch.full_like(blur, 1 / 65535))
        green = (sharp[:, 1:2] * 65535).round()
        torch.testing.assert_close(radius, (green / 4).floor() / 256)
    again = next(crops(pairs, seed=3))
    assert torch.equal(again[0], next(crops(pairs, seed=3))[0])
    assert not torch.equal(again[0], next(crops(pairs, seed=4))[0])


def test_training_ends_with_its_time_and_the_averaged_weights(pairs: Any) -> None:
    from benchmarks.contest import train
    from benchmarks.quality import NETWORKS, recipe

    torch.manual_seed(0)
    model = NETWORKS["unet"][1]()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    trained = train(model, recipe("unet"), pairs, pairs, 1.0, 0)
    assert trained.steps >= 1
    assert [at for at, _ in trained.curve] == sorted(at for at, _ in trained.curve)
    assert trained.curve[-1][0] == 1.0
    assert not model.training
    assert any(not torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_a_contestant_is_measured(
    pairs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On pairs at hand: all of ErA's phases, the scores, and what its estimates are worth."""
    from benchmarks import quality

    asked = []
    monkeypatch.setattr(quality, "pairs", lambda *which, **how: asked.append((which, how)) or pairs)
    found = quality.measure("era", tmp_path, 3.0, 0)
    assert asked == [
        ((tmp_path, "train"), {}),
        ((tmp_path, "test"), {}),
        ((tmp_path, "test"), {"mixed_psf": True}),
    ]
    assert len(found["psnr"]) == len(found["mixed_gain"]) == 4
    assert found["psnr_blurred"][0] == pytest.approx(20 * np.log10(65535), abs=0.01)
    assert {row["figure"] for row in found["prediction"]} == {"radius error", "size of E"}
    assert json.loads(json.dumps(found)) == found


def test_every_contestant_is_what_its_name_says() -> None:
    from benchmarks.quality import NETWORKS, TINY

    configs = {name: getattr(make(), "config", None) for name, (_, make) in NETWORKS.items()}
    assert configs["era"] == TINY
    assert not configs["no-e"].error_term
    assert (configs["x-printed"].x_form, configs["p-printed"].p_form) == ("paper", "paper")
    assert configs["p-printed"].stages == configs["era-2"].stages == 2  # else P reaches nothing
    assert not configs["priors"].data_step
    assert [name for name, config in configs.items() if config is None] == [
        "nafnet",
        "unet",
        "unet-wide",
    ]


def result(network: str, seed: int, gains: list[float]) -> dict[str, Any]:
    blurred = [20.0, 25.0, 30.0, 22.0]
    return {
        "network": network,
        "seconds": 5.0,
        "seed": seed,
        "machine": "a machine",
        "parameters": 1000,
        "gmacs": 1.5,
        "steps": 10,
        "curve": [[2.5, 0.1], [5.0, 0.2 + seed]],
        "psnr_blurred": blurred,
        "psnr": [b + g for b, g in zip(blurred, gains, strict=True)],
        "ssim_blurred": [0.7] * 4,
        "ssim": [0.71] * 4,
        "mixed_gain": [0.5] * 4,
        "prediction": [{"figure": "radius error", "where": "x", "mean": 1.0, "unit": "px"}],
    }


def test_results_are_appended_once_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks import quality, table

    monkeypatch.setattr(quality, "ROWS", tmp_path / "quality.jsonl")
    monkeypatch.setattr(quality, "PICTURES", tmp_path)
    monkeypatch.setattr(table, "RESULTS", tmp_path / "RESULTS.md")
    asked = []

    def measure(
        name: str, _work: Path, _seconds: float, seed: int, photos: Path | None
    ) -> dict[str, Any]:
        asked.append((name, seed, photos))
        shift = {"era": 1.0, "unet": 0.8, "no-e": 0.7, "nafnet": 0.1}[name] + seed / 10
        found = result(name, seed, [shift, shift + 0.2, shift - 0.2, shift])
        return {**found, "pairs": "camera", "mixed_gain": []} if photos else found

    monkeypatch.setattr(quality, "measure", measure)
    quality.contest(["era", "unet"], tmp_path, 5.0, [0])
    quality.contest(["era", "unet", "nafnet"], tmp_path, 5.0, [0, 1])
    assert len(asked) == len(set(asked)) == 6
    kept = [json.loads(line) for line in (tmp_path / "quality.jsonl").read_text().splitlines()]
    assert len(kept) == 6
    drawn: dict[str, list[tuple[float, float]]] = {}
    svg = quality.svg
    monkeypatch.setattr(
        quality, "svg", lambda lines, **how: drawn.update(lines) or svg(lines, **how)
    )
    quality.tell(5.0)
    assert drawn["ErA, `tiny`"] == [(2.5, pytest.approx(0.1)), (5.0, pytest.approx(0.7))]
    text = (tmp_path / "RESULTS.md").read_text()
    assert "| ErA, `tiny` | 2 | +1.05 (" in text
    assert "| 25.30 | 0.710 |" in text
    assert "ErA minus plain U-Net 16-32-64: +0.20 dB (" in text
    assert "By seed: +0.20, +0.20." in text
    assert "ErA minus ErA without E" not in text  # which was not measured
    assert "is **missed**" in text
    assert "<svg" in (tmp_path / "quality-5.svg").read_text()
    quality.contest(["no-e"], tmp_path, 5.0, [1])
    monkeypatch.setattr(quality, "GOAL", 0.15)
    quality.tell(5.0)
    text = (tmp_path / "RESULTS.md").read_text()
    assert "is **met**" in text
    assert "ErA minus ErA without E: +0.30 dB (" in text  # over the seed that both have
    quality.contest(["era", "no-e"], tmp_path, 5.0, [0], tmp_path)  # pairs like a camera's
    assert asked[-2:] == [("era", 0, tmp_path), ("no-e", 0, tmp_path)]
    quality.tell(5.0, camera=True)
    text = (tmp_path / "RESULTS.md").read_text()
    assert "is **met**" in text  # the other table is as it was
    own = text[text.index("## Quality on pairs like a camera's after") :]
    assert "| ErA, `tiny` | 1 | +1.00 (" in own
    assert "ErA minus ErA without E: +0.30 dB (" in own


def test_pairs_like_a_cameras_are_tested_on_photographs_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import cv2

    from benchmarks import contest

    for folder in ("photos", "others"):
        (tmp_path / folder).mkdir()
    tests = contest.photographs_for_tests()
    with contest.LIST.open() as stream:
        listed = [line.split("\t")[0] for line in stream][1:]
    assert len(tests) == -(-len(listed) // contest.TEST_EVERY)
    names = [sorted(tests)[0], *sorted(set(listed) - tests)[:3]]
    for index, name in enumerate(names):
        photo = np.random.default_rng(index).integers(80, 120, (400, 400, 3), np.uint8)
        photo[..., 0 if index else 2] += 100  # of BGR: the first one red, the others blue
        cv2.imwrite(str(tmp_path / "photos" / name), photo)
    monkeypatch.setattr(contest, "PAIRS", {"train": 3, "test": 2})
    monkeypatch.setattr(contest, "INPUT_DB", (0.0, 100.0))
    with pytest.raises(UserError, match=r"no photograph there that photographs\.tsv has for test"):
        contest.camera_pairs(tmp_path, "test", tmp_path / "others")
    for split, number in contest.PAIRS.items():
        made = contest.camera_pairs(tmp_path, split, tmp_path / "photos")
        size = (number, contest.SIDE, contest.SIDE)
        assert [part.shape for part in made] == [(*size, 3), (*size, 3), size]
        assert made.radius.max() <= contest.RADIUS_MAX * 256
        red, _, blue = made.sharp.reshape(-1, 3).mean(axis=0)
        assert (red > blue) == (split == "test")
        again = contest.camera_pairs(tmp_path, split, tmp_path / "none")  # made once
        assert all(np.array_equal(a, b) for a, b in zip(made, again, strict=True))
