"""Synthetic defocus: deterministic, in DPDD's layout, and true to its radius map."""

from __future__ import annotations

import json
import os
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import S3Server

from pipeline import storage
from pipeline.errors import UserError
from pipeline.images import read_image, to_float
from pipeline.metrics import psnr
from pipeline.preprocess import preprocess
from pipeline.synthesize import synthesize
from pipeline.synthesize.camera import EFFECTS, Camera, parse_effects
from pipeline.synthesize.photos import load_photos, shrunk
from pipeline.synthesize.psf import Aperture, psf
from pipeline.synthesize.render import Rendered
from pipeline.synthesize.scene import draw_scene
from pipeline.synthesize.write import make_pair


def files(folder: Path) -> dict[str, bytes]:
    found = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): p.read_bytes() for p in found}


def test_same_seed_same_bytes_another_seed_others(tmp_path: Path) -> None:
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        synthesize("bundled", str(tmp_path / name), 4, seed, (64, 48))
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert files(tmp_path / "a") != files(tmp_path / "c")


def test_layout_is_dpdds(tiny_pairs: Path) -> None:
    for split in ("train", "val", "test"):
        names = [
            sorted(p.name for p in (tiny_pairs / f"{split}_c" / kind).iterdir())
            for kind in ("source", "target", "radius")
        ]
        assert names[0] == names[2]
        assert len(names[0]) == len(names[1])
        assert not set(names[0]) & set(names[1])  # as in the real set, names differ
    source = next((tiny_pairs / "train_c" / "source").iterdir())
    assert read_image(str(source)).dtype == np.uint16


def test_blur_can_be_seen_and_grows_with_the_radius(tmp_path: Path) -> None:
    synthesize("bundled", str(tmp_path), 30, 0, (96, 96))
    found = []
    for blur in sorted((tmp_path / "train_c" / "source").iterdir()):
        sharp = sorted((tmp_path / "train_c" / "target").iterdir())[len(found)]
        import cv2

        radius = cv2.imread(str(tmp_path / "train_c" / "radius" / blur.name), cv2.IMREAD_UNCHANGED)
        score = psnr(to_float(read_image(str(blur))), to_float(read_image(str(sharp))))
        found.append((float(radius.mean()) / 256, score))
    radii, scores = np.array(found).T
    assert radii.min() > 0.2 and radii.max() <= 7
    assert 18 < scores.mean() < 34
    assert np.corrcoef(radii, scores)[0, 1] < -0.3


def test_goes_on_and_refuses_other_settings(tmp_path: Path) -> None:
    synthesize("bundled", str(tmp_path), 3, 0, (48, 48))
    before = files(tmp_path)
    next((tmp_path / "test_c" / "source").iterdir()).unlink()
    synthesize("bundled", str(tmp_path), 3, 0, (48, 48))
    assert files(tmp_path) == before
    assert json.loads((tmp_path / "synthesis.json").read_text())["complete"]
    with pytest.raises(UserError, match="other settings"):
        synthesize("bundled", str(tmp_path), 3, 1, (48, 48))


@pytest.mark.parametrize("text", ["[]", "{", "3"])
def test_a_description_that_is_none_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "synthesis.json").write_text(text)
    with pytest.raises(UserError, match=r"synthesis\.json: not "):
        synthesize("bundled", str(tmp_path), 3, 0, (48, 48))


def test_on_s3(s3_server: S3Server) -> None:
    synthesize("bundled", storage.join(s3_server.url, "set"), 3, 0, (48, 48))
    assert len(storage.find(storage.join(s3_server.url, "set"))) == 3 * 3 + 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("bundled", 2, (64, 64)), "at least 3"),
        (("bundled", 4, (16, 64)), "at least 32x32"),
        (("bundled", 4, (4000, 64)), "smaller than the pairs"),
        (("bundled", 10**40, (64, 64)), "at most 1000000 are made"),
        (("/nowhere", 4, (64, 64)), "no such folder"),
    ],
)
def test_wrong_inputs(arguments: tuple, message: str, tmp_path: Path) -> None:
    photos, pairs, size = arguments
    with pytest.raises(UserError, match=message):
        synthesize(photos, str(tmp_path), pairs, 0, size)


def test_a_seed_that_its_description_could_not_hold(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--seed 1000000000000000000000"):
        synthesize("bundled", str(tmp_path / "out"), 3, seed=10**21)
    assert not (tmp_path / "out").exists()


def test_folder_of_photographs_must_hold_photographs(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(UserError, match="no image in this folder"):
        synthesize(str(tmp_path / "in"), str(tmp_path / "out"), 4)
    for name in ("a", "b", "c"):
        (tmp_path / "in" / f"{name}.png").write_text("words")
    with pytest.raises(UserError, match="not an image"):
        synthesize(str(tmp_path / "in"), str(tmp_path / "out"), 4)


def test_folders_of_splits_are_kept_apart(tmp_path: Path) -> None:
    from pipeline.images import write_png

    for split in ("train", "val", "test"):
        write_png(str(tmp_path / "in" / split / f"{split}.png"), np.full((50, 60, 3), 99, np.uint8))
    found = load_photos(str(tmp_path / "in"), (48, 48))
    names = {split: [photo.name for photo in photos] for split, photos in found.items()}
    assert names == {split: [f"{split}.png"] for split in ("train", "val", "test")}
    (tmp_path / "in" / "val" / "val.png").unlink()
    with pytest.raises(UserError, match="val: no "):
        load_photos(str(tmp_path / "in"), (48, 48))


def test_few_photographs_are_kept_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.synthesize import photos

    for number in range(6):
        image = np.full((48, 48, 3), 40 * number, np.uint8)
        (tmp_path / "in").mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / "in" / f"{number}.png"), image)
    kept = lru_cache(maxsize=1)(photos._light.__wrapped__)
    monkeypatch.setattr(photos, "_light", kept)
    found = load_photos(str(tmp_path / "in"), (48, 48))
    every = [photo for split in found.values() for photo in split]
    assert len({float(photo.light.mean()) for photo in every}) == 6
    assert kept.cache_info().currsize == 1
    assert all(photo.shape == (48, 48) for photo in every)


def test_photographs_are_shrunk_until_they_are_sharp_but_not_below_the_pairs() -> None:
    assert shrunk(np.zeros((1200, 3600, 3), np.float32), (48, 48)).shape == (600, 1800, 3)
    assert shrunk(np.zeros((1200, 3600, 3), np.float32), (900, 48)).shape == (900, 2700, 3)
    assert shrunk(np.zeros((300, 400, 3), np.float32), (48, 48)).shape == (300, 400, 3)


def test_mixed_psfs_in_one_picture() -> None:
    photos = load_photos("bundled", (64, 64))["train"]
    for seed in range(5):
        scene = draw_scene(np.random.default_rng(seed), photos, (64, 64), 5.0, mixed_psf=True)
        kinds = [surface.psf for surface in scene.surfaces]
        assert len(kinds) == len(set(kinds)) >= 2
        scene = draw_scene(np.random.default_rng(seed), photos, (64, 64), 5.0)
        assert len({surface.psf for surface in scene.surfaces}) == 1


def test_foreign_files_with_the_names_of_bundled_ones(tmp_path: Path) -> None:
    """No disparity is taken from a folder of the user's, and names may be no text."""
    from pipeline.images import encode_png

    (tmp_path / "in").mkdir()
    for number, name in enumerate(("b", "motorcycle_left", os.fsdecode(b"x\xff"))):
        data = encode_png(np.full((50, 60, 3), 90 + number, np.uint8))
        (tmp_path / "in" / f"{name}.png").write_bytes(data)
    (tmp_path / "in" / "motorcycle_disp.npz").write_bytes(b"junk")
    synthesize(str(tmp_path / "in"), str(tmp_path / "out"), 3, 0, (48, 48))
    assert "x\\\\xff.png" in (tmp_path / "out" / "synthesis.json").read_text()


def pair(effects: str, index: int = 0, radius_max: float = 5.0) -> Rendered:
    photos = load_photos("bundled", (96, 128))["train"]
    names = parse_effects(effects)
    return make_pair(photos, "train", index, 1, (96, 128), radius_max, effects=names)


@pytest.mark.parametrize("effect", EFFECTS)
def test_every_effect_changes_a_pair_and_no_other_effect(effect: str) -> None:
    """An effect is seen in some pair; what the others draw does not depend on it."""
    plain = [pair("", index) for index in range(6)]
    made = [pair(effect, index) for index in range(6)]
    again = pair(effect, 2)
    assert any(np.abs(m.blur - p.blur).max() > 1 / 255 for m, p in zip(made, plain, strict=True))
    assert all(np.array_equal(getattr(again, k), getattr(made[2], k)) for k in vars(again))
    for one in made:
        assert one.blur.shape == one.sharp.shape == (96, 128, 3)
        assert one.radius.shape == (96, 128)
        assert one.blur.dtype == one.sharp.dtype == one.radius.dtype == np.float32
        assert one.blur.min() >= 0 and one.blur.max() <= 1
        assert one.radius.min() >= 0 and one.radius.max() <= 5.0
    other = Camera(frozenset(EFFECTS), "a/0").draws(effect)
    alone = Camera(frozenset([effect]), "a/0").draws(effect)
    assert other is not None and alone is not None
    assert other.uniform() == alone.uniform()


def test_effects_are_written_down_and_others_are_refused(tmp_path: Path) -> None:
    made = synthesize("bundled", str(tmp_path / "a"), 3, 0, (64, 64), camera="jpeg, noise")
    assert made["pairs"] == 3
    said = json.loads((tmp_path / "a" / "synthesis.json").read_text())
    assert said["camera"] == ["jpeg", "noise"]
    with pytest.raises(UserError, match="made with other settings"):
        synthesize("bundled", str(tmp_path / "a"), 3, 0, (64, 64))
    with pytest.raises(UserError, match="'grain': not an effect; choose from highlights"):
        synthesize("bundled", str(tmp_path / "b"), 3, 0, (64, 64), camera="grain")
    assert not (tmp_path / "b").exists()


def test_a_set_that_is_not_finished_is_not_converted(tmp_path: Path) -> None:
    synthesize("bundled", str(tmp_path / "a"), 3, 0, (64, 64))
    said = tmp_path / "a" / "synthesis.json"
    said.write_text(said.read_text().replace('"complete": true', '"complete": false'))
    with pytest.raises(UserError, match="`era synthesize` did not finish this set"):
        preprocess("dpdd", str(tmp_path / "a"), str(tmp_path / "shards"))


def test_more_light_saturates_before_the_sensors_noise() -> None:
    """Noise of light beyond full scale was negative, and darkened what lies around it."""
    light = np.full((64, 64, 3), 0.3, np.float32)
    light[:, :32] = 1.0
    radius = np.zeros((64, 64), np.float32)
    found = []
    for index in range(12):
        camera = Camera(frozenset(["exposure", "noise"]), f"a/{index}")
        blur, *_ = camera._on_light(light, light, radius)
        found.append(blur[:, 32:36].mean() / blur[:, 40:].mean() - 1)
    assert abs(np.mean(found)) < 0.004


def test_an_aperture_is_upside_down_before_the_focus() -> None:
    aperture = Aperture(5, 0.3, 0.6)
    behind, before = psf(aperture, 6.0), psf(aperture, 6.0, before_focus=True)
    assert np.allclose(before, behind[::-1, ::-1]) and not np.allclose(before, behind)
    assert behind.sum() == pytest.approx(1, abs=1e-5)
    inside = psf("disk", 6.0) > 0
    assert np.count_nonzero(behind[~inside]) == 0
    assert 0.3 < np.count_nonzero(behind) / np.count_nonzero(inside) < 0.95


def test_mixed_psfs_have_an_aperture_each() -> None:
    photos = load_photos("bundled", (64, 64))["train"]
    camera = Camera(frozenset(["aperture"]), "a/0")
    found = {}
    for mixed in (False, True):
        scene = draw_scene(np.random.default_rng(3), photos, (64, 64), 5.0, mixed)
        assert len(scene.surfaces) >= 2
        found[mixed] = [s.psf for s in camera._before_the_lens(scene).surfaces]
        assert all(isinstance(aperture, Aperture) for aperture in found[mixed])
    assert {*found[False]} == {found[True][0]}  # the one that is drawn first
    assert len({*found[True]}) == len(found[True])


def test_effects_are_documented() -> None:
    docs = Path(__file__).parents[1] / "docs"
    guide, options = (docs / "own-data.md").read_text(), (docs / "commands.md").read_text()
    for effect, meaning in EFFECTS.items():
        assert f"| `{effect}` | {meaning} |" in guide
        assert effect in options
