"""Restoring and evaluating: files come back as they were, figures are scikit-image's."""

from __future__ import annotations

import csv
import io
import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import skimage.data
import tifffile
import torch
from conftest import S3Server
from PIL import Image as Pillow
from PIL import ImageCms, TiffImagePlugin
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from era import ErA, named_config
from pipeline import machine, metrics, parallel_map, storage
from pipeline.checkpoint import CheckpointStore, open_checkpoint
from pipeline.checkpoint.loading import SHIPPED
from pipeline.data.split import open_split
from pipeline.errors import UserError
from pipeline.evaluate import evaluate
from pipeline.evaluate.labels import read_labels
from pipeline.evaluate.lpips import Lpips, load_lpips, lpips
from pipeline.evaluate.run import by_label, comparison, interval, published
from pipeline.images import encode_png, read_image, to_float
from pipeline.inference import pixels_for, restore_array
from pipeline.metrics import psnr
from pipeline.restore import restore
from pipeline.synthesize.psf import psf

FIELDS: dict[str, Any] = {
    "stages": 2,
    "kernels": 3,
    "kernel_size": 7,
    "radius_max": 3.0,
    "prior_channels": (4, 8),
    "error_channels": (4,),
    "estimator_channels": (4,),
}


@pytest.fixture(scope="module")
def network() -> ErA:
    """A network with random last layers, so that it changes pictures."""
    torch.manual_seed(1)
    model = ErA(named_config("tiny", **FIELDS)).eval()
    for part in (model.priors[0].tail, model.estimator.to_weights):
        torch.nn.init.normal_(part.weight, std=0.02)
    return model


@pytest.fixture(scope="module")
def run(network: ErA, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run with that network as its checkpoint."""
    folder = str(tmp_path_factory.mktemp("run"))
    store = CheckpointStore(folder)
    store.save(
        step=1,
        model=network.state_dict(),
        training={},
        meta={"step": 1, "model": network.config.to_dict()},
        files={},
        metrics={"val/psnr": 1.0},
    )
    store.wait()
    return folder


def photograph(height: int = 40, width: int = 52, dtype: type = np.uint8) -> np.ndarray:
    rng = np.random.default_rng(0)
    image = cv2.resize(rng.random((7, 9, 3)), (width, height), interpolation=cv2.INTER_CUBIC)
    return (np.clip(image, 0, 1) * np.iinfo(dtype).max).astype(dtype)


# Metrics


def test_metrics_are_scikit_images() -> None:
    a, b = to_float(photograph()), np.clip(to_float(photograph()) + 0.05, 0, 1.2)
    clamped = np.clip(b, 0, 1).astype(np.float64)
    assert metrics.psnr(b, a) == peak_signal_noise_ratio(
        a.astype(np.float64), clamped, data_range=1
    )
    assert metrics.ssim(b, a) == structural_similarity(
        a.astype(np.float64), clamped, data_range=1, channel_axis=-1
    )
    assert metrics.mae(b, a) == pytest.approx(np.abs(a - clamped).mean())
    assert metrics.psnr(a, a) == float("inf")


def test_nrknet_rounds_to_8_bits_and_weighs_by_a_gaussian() -> None:
    a = to_float(photograph(dtype=np.uint16))
    b = np.clip(a + 0.001, 0, 1)
    rounded = [np.rint(x.astype(np.float64) * 255) / 255 for x in (a, b)]
    assert metrics.psnr(b, a, "nrknet") == peak_signal_noise_ratio(*rounded, data_range=1)
    expected = structural_similarity(
        *rounded,
        data_range=1,
        channel_axis=-1,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    assert metrics.ssim(b, a, "nrknet") == pytest.approx(expected, abs=1e-12)
    with pytest.raises(UserError, match="known: standard, nrknet"):
        metrics.psnr(a, b, "mine")


def test_lpips_takes_torchvisions_layout(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = {f"features.{k}": v for k, v in Lpips().features.state_dict().items()}
    state["classifier.1.weight"] = torch.zeros(2, 2)
    torch.save(state, tmp_path / "alex.pth")
    a, b = to_float(photograph(64, 72)), np.clip(to_float(photograph(64, 72)) + 0.2, 0, 1)
    assert lpips(a, a, str(tmp_path / "alex.pth")) == 0
    near = lpips(a, np.clip(a + 0.01, 0, 1), str(tmp_path / "alex.pth"))
    assert 0 < near < lpips(a, b, str(tmp_path / "alex.pth"))
    (tmp_path / "other.pth").write_bytes(b"no weights")
    with pytest.raises(UserError, match="not AlexNet's weights"):
        load_lpips(str(tmp_path / "other.pth"))


def test_lpips_equals_torchmetrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchmetrics' own network with our trunk in torchvision's place."""
    import torchmetrics.functional.image.lpips as reference

    torch.manual_seed(0)
    state = {f"features.{k}": v for k, v in Lpips().features.state_dict().items()}
    torch.save(state, tmp_path / "alex.pth")
    ours = load_lpips(str(tmp_path / "alex.pth"))

    class Trunk(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            layers = []
            for part in ours.features:
                x = part(x)
                if isinstance(part, torch.nn.ReLU):
                    layers.append(x)
            return layers

    monkeypatch.setattr(reference, "_LPIPS__unused", None, raising=False)
    monkeypatch.setattr(reference, "Alexnet", lambda **_: Trunk())
    theirs = reference._LPIPS(net="alex", pretrained=True)
    a, b = torch.rand(1, 3, 64, 64), torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(ours(a, b), theirs(a, b, normalize=True).flatten())


def test_intervals_hold_the_mean() -> None:
    low, high = interval([1.0, 2.0, 3.0, 4.0])
    assert low < 2.5 < high
    assert interval([1.0, 2.0, 3.0, 4.0]) == [low, high]
    assert interval([5.0, 5.0]) == [5.0, 5.0]


@pytest.mark.parametrize("count", [4, 40])
def test_intervals_hold_the_mean_as_often_as_they_say(count: int) -> None:
    """The bootstrap's interval of four values holds it in 80 % of all cases."""
    values = np.random.default_rng(7).normal(size=(600, count))
    held = sum(low <= 0.0 <= high for low, high in map(interval, map(list, values)))
    assert 0.92 < held / len(values) < 0.98


# Evaluate


def test_evaluate_writes_table_and_gallery(run: str, tiny_data: Path, tmp_path: Path) -> None:
    found = evaluate(run, str(tiny_data / "train"), str(tmp_path), compare=run).summary
    rows = list(csv.DictReader(io.StringIO((tmp_path / "per_image.csv").read_text())))
    split = open_split(str(tiny_data / "train"))
    assert [row["name"] for row in rows] == split.keys
    assert found["psnr"] == pytest.approx(np.mean([float(row["psnr"]) for row in rows]))
    assert found["images"] == len(split)
    assert found["lpips"] is None
    assert "AlexNet" in found["lpips_note"]
    assert found["comparison"]["psnr_difference"] == 0
    assert {row["lpips"] for row in rows} == {found["lpips_note"]}
    sample = split.load(0)
    blurred = metrics.psnr(to_float(sample.blur), to_float(sample.sharp))
    assert float(rows[0]["psnr_blurred"]) == pytest.approx(blurred)
    page = (tmp_path / "gallery.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page
    assert all(f"case-{key}" in page for key in split.keys)
    assert "What the estimates are worth" in page
    figures = {(row["figure"], row["where"]): row["mean"] for row in found["prediction"]}
    column = [float(row["radius_error_0_1"]) for row in rows if row["radius_error_0_1"]]
    assert figures["radius error", "true radius 0 to 1 px"] == pytest.approx(np.mean(column))


def test_a_split_where_few_pictures_have_the_truth(
    run: str, tiny_pairs: Path, tmp_path: Path
) -> None:
    """The first has nothing, the second all of it, the third no radius."""
    from pipeline.preprocess import preprocess

    names = [path.name for path in sorted((tiny_pairs / "train_c" / "source").iterdir())[:3]]
    targets = sorted((tiny_pairs / "train_c" / "target").iterdir())[:3]
    source, target = (f"train_c/{kind}" for kind in ("source", "target"))
    sharps = ["", *(f"{target}/{path.name}" for path in targets[1:])]
    radii = ["", f"train_c/radius/{names[1]}", ""]
    lines = [
        f"test,{source}/{name},{sharp},{radius}"
        for name, sharp, radius in zip(names, sharps, radii, strict=True)
    ]
    folder = shutil.copytree(tiny_pairs, tmp_path / "in")
    (folder / "pairs.csv").write_text("\n".join(["split,blur,sharp,radius", *lines]))
    preprocess("folder", str(folder / "pairs.csv"), str(tmp_path / "data"))
    found = evaluate(run, str(tmp_path / "data" / "test"), str(tmp_path / "out")).summary
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out" / "per_image.csv").read_text())))
    assert [bool(row["psnr"]) for row in rows] == [False, True, True]
    assert [bool(row["radius_error"]) for row in rows] == [False, True, False]
    assert found["psnr"] == pytest.approx(np.mean([float(row["psnr"]) for row in rows[1:]]))
    assert found["radius_error"] == pytest.approx(float(rows[1]["radius_error"]))
    assert found["truth_note"].startswith("2 of 3 images have a sharp one")
    assert found["truth_note"] in (tmp_path / "out" / "gallery.html").read_text()
    with pytest.raises(UserError, match="a sharp image for every image"):
        evaluate(run, str(tmp_path / "data" / "test"), str(tmp_path / "out"), compare=run)


def test_pictures_too_small_for_scores_are_refused(run: str, tmp_path: Path) -> None:
    from pipeline.data.manifest import Manifest
    from pipeline.data.shards import Sample, ShardWriter

    writer = ShardWriter(tmp_path / "shard-00000.tar")
    image = np.zeros((40, 8, 3), np.uint16)
    writer.add(Sample("k", image, image, None, {"sharpness": [[1.0]]}))
    manifest = Manifest("folder", "val", 16, True, False, [writer.close()])
    storage.write_text(str(tmp_path / "manifest.json"), manifest.to_json())
    with pytest.raises(UserError, match="k has 8x40 pixels; at least 32 on each side"):
        evaluate(run, str(tmp_path), str(tmp_path / "out"))


def test_pictures_of_other_methods_are_scored_beside(
    run: str, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = open_split(str(tiny_data / "val"))
    folders = [tmp_path / name for name in ("blurred", "sharp")]
    for folder in folders:
        folder.mkdir()
        for key in split.keys:
            sample = split.load(split.keys.index(key))
            image = sample.blur if folder.name == "blurred" else sample.sharp
            cv2.imwrite(str(folder / f"{key}.png"), image[..., ::-1])
    given = [f"{folder.name}={folder}" for folder in folders]
    found = evaluate(run, str(tiny_data / "val"), str(tmp_path / "out"), against=given)
    blurred, sharp = (found.summary["against"][folder.name] for folder in folders)
    assert blurred["psnr"] == pytest.approx(found.summary["psnr_blurred"])
    assert blurred["psnr_difference"] == pytest.approx(found.summary["gain"])
    assert (sharp["psnr"], sharp["psnr_difference"], sharp["better"]) == (None, None, 0)
    assert sharp["ssim"] == pytest.approx(1.0)
    header = (tmp_path / "out" / "per_image.csv").read_text().splitlines()[0]
    assert "blurred_psnr,blurred_ssim,blurred_mae" in header
    assert "Against other methods" in (tmp_path / "out" / "gallery.html").read_text()
    (folders[0] / f"{split.keys[0]}.png").rename(folders[0] / "another.png")
    for wrong, words in (
        (given[:1], f"no picture is called {split.keys[0]}"),
        ([str(folders[1])], "expected NAME=FOLDER"),
        ([f"psnr={folders[1]}"], "expected NAME=FOLDER"),
        ([given[1], given[1]], "given twice"),
        ([f"x={tmp_path / 'no'}"], "no such folder"),
    ):
        with pytest.raises(UserError, match=words):
            evaluate(run, str(tiny_data / "val"), str(tmp_path / "out"), against=wrong)
    cv2.imwrite(str(folders[0] / f"{split.keys[0]}.png"), photograph(20, 20))
    monkeypatch.setattr("pipeline.evaluate.run.score", None)  # refused before the network runs
    with pytest.raises(UserError, match="20x20 pixels; the sharp image has"):
        evaluate(run, str(tiny_data / "val"), str(tmp_path / "out"), against=given[:1])


def test_images_are_scored_at_once_as_memory_allows(
    run: str, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("parallel_map", "evaluate.run"):
        monkeypatch.setattr(f"pipeline.{module}.has_cluster", lambda: False)
    at_once, threads = [], parallel_map._in_threads
    monkeypatch.setattr(parallel_map, "_in_threads", lambda *a: at_once.append(a[2]) or threads(*a))
    found = []
    for free, processors in ((1 << 40, 3), (1, 3)):
        monkeypatch.setattr("pipeline.evaluate.run.free_memory", lambda free=free: free)
        monkeypatch.setattr("pipeline.evaluate.run.processors", lambda n=processors: n)
        found.append(evaluate(run, str(tiny_data / "val"), str(tmp_path / "out")))
    assert at_once == [3, 3, 1, 1]  # the scores, then the pictures
    assert found[0].summary == found[1].summary
    for name, value in (("PICTURE_PIXELS", 1), ("LEAST_PICTURES", 2)):
        monkeypatch.setattr(f"pipeline.evaluate.run.{name}", value)
    few = evaluate(run, str(tiny_data / "train"), str(tmp_path / "out"))
    assert len(few.cases) == 2 < len(few.rows)


def test_limits_of_a_container_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    free, allowed = machine.free_memory(), machine.processors()
    assert free > 1e6 and 1 <= allowed <= (os.cpu_count() or 1)
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("900000\n")
    (tmp_path / "memory.stat").write_text("anon 800000\ninactive_file 50000\n")
    assert (machine.free_memory(), machine.processors()) == (150_000, 1)
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.processors() == allowed and machine.free_memory() > 1e6


def test_a_gpu_that_no_node_has_is_one_line(
    run: str, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = "--device cuda: the cluster has no node with a GPU"
    if not parallel_map.has_cluster():
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
        words = "--device cuda: torch finds no CUDA device here"
    with pytest.raises(UserError, match=words):
        evaluate(run, str(tiny_data / "val"), str(tmp_path / "out"), device="cuda")
    with pytest.raises(UserError, match="--device mps: expected cpu or cuda"):
        evaluate(run, str(tiny_data / "val"), str(tmp_path / "out"), device="mps")


def test_evaluate_without_truth_has_pictures_only(run: str, tmp_path: Path) -> None:
    from pipeline.preprocess import preprocess

    (tmp_path / "in").mkdir()
    cv2.imwrite(str(tmp_path / "in" / "a.jpg"), photograph())
    preprocess("cuhk", str(tmp_path / "in"), str(tmp_path / "data"))
    found = evaluate(run, str(tmp_path / "data" / "test"), str(tmp_path / "out")).summary
    assert found["psnr"] is None
    assert "case-a" in (tmp_path / "out" / "gallery.html").read_text()


def test_dpdd_labels_split_the_means(run: str, tiny_data: Path, tmp_path: Path) -> None:
    rows = [{"psnr": float(n), "ssim": 0.5, "mae": 0.1} for n in range(1, 6)]
    split = tmp_path / "dpdd" / "test"
    split.mkdir(parents=True)
    assert by_label(read_labels(str(split), "test", len(rows)), rows) == {}
    np.save(split / "indoor_labels.npy", np.array([1, 3]))
    np.save(split.parent / "outdoor_labels.npy", np.array([[2, 4, 5]]))
    found = by_label(read_labels(str(split), "test", len(rows)), rows)
    # Those above are of the test pictures; what lies beside the shards is the split's own.
    assert [*read_labels(str(split), "val", len(rows))] == ["indoor"]
    assert (found["indoor"]["images"], found["indoor"]["psnr"]) == (2, 2.0)
    assert (found["outdoor"]["images"], found["outdoor"]["psnr"]) == (3, pytest.approx(11 / 3))
    np.save(split / "indoor_labels.npy", np.array([0, 3]))
    with pytest.raises(UserError, match="numbers from 1 to 5"):
        read_labels(str(split), "test", len(rows))
    (split / "indoor_labels.npy").write_bytes(b"PK\x03\x04" + bytes(50))
    with pytest.raises(UserError, match="expected a NumPy array"):
        read_labels(str(split), "test", len(rows))


def test_paired_comparison() -> None:
    one = [{"psnr": 20.0 + n, "ssim": 0.5 + n / 100} for n in range(6)]
    other = [{"psnr": 19.8 + n + 0.3 * (n == 5), "ssim": 0.5} for n in range(6)]
    found = comparison(one, other)
    assert found["psnr_difference"] == pytest.approx((5 * 0.2 - 0.1) / 6)
    assert found["psnr_interval"][0] < found["psnr_difference"] < found["psnr_interval"][1]
    assert (found["better"], found["images"]) == (5, 6)
    # Far narrower than either mean's own: the images' difficulty cancels.
    own = interval([row["psnr"] for row in one])
    assert found["psnr_interval"][1] - found["psnr_interval"][0] < (own[1] - own[0]) / 5


def test_this_checkpoint_is_one_more_row(tiny_data: Path) -> None:
    found = open_split(str(tiny_data / "train")).manifest
    manifest = replace(found, dataset="dpdd", split="test", radius=False)
    summary = {"psnr": 25.0, "ssim": 0.8, "lpips": None, "images": 76, "protocol": "standard"}
    rows = published(manifest, summary)
    assert rows[-1] == {
        "method": "this checkpoint, protocol standard",
        "psnr": 25.0,
        "ssim": 0.8,
        "lpips": None,
    }
    assert len(rows) == 9
    assert published(replace(manifest, split="val"), summary) == []
    assert published(replace(manifest, radius=True), summary) == []  # synthetic pairs


def test_published_table_is_for_a_whole_test_set_only() -> None:
    from pipeline.evaluate.published import published_rows

    assert [row["psnr"] for row in published_rows("dpdd", 76)][-1] == 26.687
    assert published_rows("dpdd", 75) == published_rows("folder", 76) == []


# Restore


PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def exif() -> Pillow.Exif:
    values = Pillow.Exif()
    values[274] = 6  # the orientation
    values[271] = "Maker"
    return values


@pytest.mark.parametrize("kind", ["png", "jpg", "webp"])
def test_profile_exif_and_orientation_survive(kind: str, run: str, tmp_path: Path) -> None:
    source = tmp_path / f"photo.{kind}"
    Pillow.fromarray(photograph()).save(source, icc_profile=PROFILE, exif=exif())
    restore([str(source)], str(tmp_path / "out"), run)
    before, after = Pillow.open(source), Pillow.open(tmp_path / "out" / source.name)
    assert after.size == before.size
    assert after.info["icc_profile"] == PROFILE
    assert dict(after.getexif()) == dict(before.getexif())
    assert [p.name for p in (tmp_path / "out").iterdir()] == [source.name]


@pytest.mark.parametrize("kind", ["png", "tif"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_bit_depth_grey_and_alpha_survive(
    kind: str, dtype: type, channels: int, run: str, tmp_path: Path
) -> None:
    image = photograph(dtype=dtype)
    alpha = photograph(dtype=dtype)[..., :1]
    image = {1: image[..., 0], 3: image, 4: np.concatenate([image, alpha], axis=2)}[channels]
    source, target = tmp_path / f"photo.{kind}", tmp_path / "out" / f"photo.{kind}"
    if kind == "tif":
        extra = {"extrasamples": ["unassalpha"]} if channels == 4 else {}
        tags = [(274, "H", 1, 8, True), (271, "s", 0, "Maker", True)]
        tags += [(315, "s", 0, "José".encode() + b"\0", True)]
        photometric = "minisblack" if channels == 1 else "rgb"
        tifffile.imwrite(
            source, image, photometric=photometric, iccprofile=PROFILE, extratags=tags, **extra
        )
        read = tifffile.imread
    else:
        cv2.imwrite(str(source), image)
        read = lambda path: cv2.imread(str(path), cv2.IMREAD_UNCHANGED)  # noqa: E731
    restore([str(source)], str(tmp_path / "out"), run)
    before, after = read(source), read(target)
    assert (after.dtype, after.shape) == (before.dtype, before.shape)
    assert not np.array_equal(after, before)
    if channels == 4:
        assert np.array_equal(after[..., 3], before[..., 3])
    if kind == "tif":
        with tifffile.TiffFile(target) as file:
            tags = file.pages[0].tags
            assert (tags[274].value, tags[271].value, tags[315].value) == (8, "Maker", "José")
            assert bytes(tags[34675].value) == PROFILE


def test_exif_and_gps_directories_of_a_tiff_survive(run: str, tmp_path: Path) -> None:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[34665] = {33434: 0.01, 36867: "2020:01:01 00:00:00", 34855: 400}
    tags[34853] = {1: "N", 2: (47.0, 30.0, 10.5)}
    tags.tagtype[34665] = tags.tagtype[34853] = 4
    Pillow.fromarray(photograph()).save(tmp_path / "a.tif", tiffinfo=tags)
    restore([str(tmp_path / "a.tif")], str(tmp_path / "out"), run)
    before, after = (
        {code: tifffile.TiffFile(path).pages[0].tags[code].value for code in (34665, 34853)}
        for path in (tmp_path / "a.tif", tmp_path / "out" / "a.tif")
    )
    assert after == before
    exif_read = dict(Pillow.open(tmp_path / "out" / "a.tif").getexif().get_ifd(34665))
    assert exif_read[36867] == "2020:01:01 00:00:00"


def test_other_kinds_of_tiff(
    run: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """White-is-zero, planes apart and premultiplied alpha come back; CMYK and palettes do not."""
    image, alpha = photograph(), photograph()[..., :1]
    planes = np.ascontiguousarray(np.moveaxis(image, -1, 0))
    four = np.concatenate([image, alpha], axis=2)
    folder = tmp_path / "in"
    folder.mkdir()
    write = tifffile.imwrite
    write(folder / "white.tif", image[..., 0], photometric="miniswhite")
    write(folder / "planes.tif", planes, photometric="rgb", planarconfig="separate")
    write(folder / "alpha.tif", four, photometric="rgb", extrasamples=["assocalpha"])
    write(folder / "two.tif", np.stack([image, image]), photometric="rgb")
    write(folder / "cmyk.tif", four, photometric="separated")
    Pillow.fromarray(image).convert("P").save(folder / "palette.tif")
    Pillow.fromarray(image).convert("CMYK").save(folder / "cmyk.jpg")
    monkeypatch.setattr(logging.getLogger("era"), "propagate", True)
    with caplog.at_level(logging.WARNING, logger="era"):
        done = restore([str(folder)], str(tmp_path / "out"), run)
    assert (done["restored"], done["failed"]) == (4, 3)
    for wanted in ("only the first of its 2", "are separated", "are palette", "are CMYK"):
        assert wanted in caplog.text

    def page(name: str) -> Any:
        return tifffile.TiffFile(tmp_path / "out" / name).pages[0]

    assert page("white.tif").photometric == tifffile.PHOTOMETRIC.MINISWHITE
    assert page("planes.tif").asarray().shape == image.shape
    assert page("alpha.tif").extrasamples == (tifffile.EXTRASAMPLE.ASSOCALPHA,)


def test_bad_files_are_reported_and_the_others_go_on(run: str, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    cv2.imwrite(str(folder / "good.png"), photograph())
    (folder / "text.png").write_text("words")
    (folder / "cut.tif").write_bytes(b"II*\0")
    done = restore([str(folder), str(tmp_path / "none*.jpg")], str(tmp_path / "out"), run)
    assert (done["restored"], done["failed"], done["incomplete"]) == (1, 3, True)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["good.png"]


def test_what_restore_refuses(run: str, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), photograph())
    (tmp_path / "b").mkdir()
    cv2.imwrite(str(tmp_path / "b" / "a.png"), photograph())
    with pytest.raises(UserError, match="never overwritten"):
        restore([str(tmp_path / "a.png")], str(tmp_path), run)
    with pytest.raises(UserError, match=r"both .* would be written there"):
        restore([str(tmp_path / "a.png"), str(tmp_path / "b")], str(tmp_path / "out"), run)
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(UserError, match="never overwritten"):
        restore([str(tmp_path / "a.png")], str(tmp_path / "link"), run)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises((UserError, OSError), match="loop"):
        restore([str(tmp_path / "a.png")], str(tmp_path / "loop" / "x"), run)
    cv2.imwrite(str(tmp_path / "a.jpg"), photograph())
    with pytest.raises(UserError, match=r"a\.radius\.png: both .* would be written there"):
        restore([str(tmp_path / "a.*")], str(tmp_path / "out"), run, maps=True)
    (tmp_path / "a.jpg").unlink()
    with pytest.raises(UserError, match="working-scale"):
        restore([str(tmp_path / "a.png")], str(tmp_path / "out"), run, working_scale=2)
    with pytest.raises(UserError, match="no such run"):
        restore([str(tmp_path / "a.png")], str(tmp_path / "out"), str(tmp_path / "no"))


def test_shipped_model_restores_at_once(tmp_path: Path) -> None:
    """Networks come with the program, whole, and the default makes a blurred picture better."""
    for name, most in (("photographs", 12_000_000), ("tiny", 3_000_000)):
        shipped = open_checkpoint(str(SHIPPED / name))
        shipped.verify()
        assert shipped.files["model.safetensors"]["bytes"] <= most
    assert "On real pictures" in (SHIPPED / "photographs" / "README.md").read_text()
    sharp = skimage.data.chelsea()[:256, :256]
    blurred = cv2.filter2D(sharp, -1, psf("disk", 5.0))
    cv2.imwrite(str(tmp_path / "a.png"), blurred[..., ::-1])
    restore([str(tmp_path / "a.png")], str(tmp_path / "out"))
    restored = read_image(str(tmp_path / "out" / "a.png"))
    before, after = (psnr(to_float(image), to_float(sharp)) for image in (blurred, restored))
    assert after > before + 0.3


def test_pictures_on_request(run: str, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), photograph())
    restore([str(tmp_path / "*.png")], str(tmp_path / "out"), run, compare=True, maps=True)
    names = {p.name for p in (tmp_path / "out").iterdir()}
    extras = {f"a.{what}.png" for what in ("compare", "radius", "weights", "error")}
    assert names == {"a.png"} | extras
    assert cv2.imread(str(tmp_path / "out" / "a.compare.png")).shape == (40, 104, 3)


def _wide(network: ErA, url: Path, biases: tuple[float, ...] = (-9.0, -9.0, 9.0)) -> str:
    """A checkpoint whose network sees the same blur everywhere: by default the widest."""
    wide = ErA(network.config)
    wide.load_state_dict(network.state_dict())
    with torch.no_grad():
        wide.estimator.to_weights.weight.zero_()
        wide.estimator.to_weights.bias.copy_(torch.tensor(biases))
    store = CheckpointStore(str(url))
    store.save(
        step=1,
        model=wide.state_dict(),
        training={},
        meta={"step": 1, "model": wide.config.to_dict()},
        files={},
        metrics={"val/psnr": 1.0},
    )
    store.wait()
    return str(url)


def test_blur_beyond_the_models_range_is_said(
    network: ErA, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Said once, with the scale to try."""
    wide = _wide(network, tmp_path / "wide")
    cv2.imwrite(str(tmp_path / "a.png"), photograph())
    monkeypatch.setattr(logging.getLogger("era"), "propagate", True)
    with caplog.at_level(logging.INFO, logger="era"):
        restore([str(tmp_path / "a.png")], str(tmp_path / "out"), wide)
    assert "knows blur radii from 0 to 3 pixels" in caplog.text
    assert "100% of it seems blurred by about 3 pixels or more" in caplog.text
    assert "try --working-scale 0.5" in caplog.text


def test_working_scale_auto_shrinks_what_is_blurred_beyond_the_model(
    run: str,
    network: ErA,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The run's network finds its smallest radii everywhere, one with other biases the widest."""
    cv2.imwrite(str(tmp_path / "a.png"), photograph(80, 101))
    for scale in ("1", "auto"):
        restore([str(tmp_path / "a.png")], str(tmp_path / scale), run, working_scale=scale)
    assert (tmp_path / "1/a.png").read_bytes() == (tmp_path / "auto/a.png").read_bytes()
    wide = _wide(network, tmp_path / "wide")
    monkeypatch.setattr(logging.getLogger("era"), "propagate", True)
    restore([str(tmp_path / "a.png")], str(tmp_path / "at_wide"), wide, working_scale="auto")
    assert "blurred by about 12 pixels or more" in caplog.text  # 3 pixels at a quarter
    middling = _wide(network, tmp_path / "middling", (-9.0, 9.0, -9.0))  # at every scale
    restore([str(tmp_path / "a.png")], str(tmp_path / "at_middling"), middling)
    assert "about 3 pixels, close to the 3 that this model knows; try --working-scale 0.5" in (
        caplog.text
    )
    with pytest.raises(UserError, match="--working-scale half: expected auto, or a number"):
        restore([str(tmp_path / "a.png")], str(tmp_path / "out"), run, working_scale="half")


def test_strength_goes_from_the_photograph_to_the_restored_one(run: str, tmp_path: Path) -> None:
    image = photograph(80, 101)
    cv2.imwrite(str(tmp_path / "a.png"), image)
    found = []
    for strength in (0.0, 0.5, 1.0):
        out = tmp_path / str(strength)
        restore([str(tmp_path / "a.png")], str(out), run, strength=strength)
        found.append(cv2.imread(str(out / "a.png")).astype(float))
    restore([str(tmp_path / "a.png")], str(tmp_path / "default"), run)
    assert (tmp_path / "default/a.png").read_bytes() == (tmp_path / "1.0/a.png").read_bytes()
    assert np.array_equal(found[0], image)
    half, whole = (np.abs(picture - image).mean() for picture in found[1:])
    assert 0.2 * whole < half < 0.6 * whole
    for strength in (-0.1, 1.1, np.nan):
        with pytest.raises(UserError, match="expected a number from 0 to 1"):
            restore([str(tmp_path / "a.png")], str(tmp_path / "out"), run, strength=strength)


def test_working_scale_keeps_the_size(run: str, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), photograph(80, 101))
    restore([str(tmp_path / "a.png")], str(tmp_path / "out"), run, working_scale=0.5)
    assert cv2.imread(str(tmp_path / "out" / "a.png")).shape == (80, 101, 3)


def test_tiles_agree_with_the_whole(network: ErA) -> None:
    """Invisible everywhere, up to the border: a fraction of an 8-bit step, with random weights."""
    image = photograph(560, 521, np.uint16)
    whole = restore_array(network, image, max_pixels=10**9)
    tiled = restore_array(network, image, max_pixels=300 * 300)
    assert np.abs(whole.restored - tiled.restored).max() < 0.25 / 255
    assert np.array_equal(whole.weights, tiled.weights)
    assert np.abs(whole.restored - to_float(image)).max() > 4 / 255  # there is work done


@pytest.mark.full
def test_a_cluster_gives_the_same_figures_and_pictures(
    ray_cluster: str,
    s3_server: S3Server,
    run: str,
    tiny_data: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Spread over nodes, with S3 between them, or in threads of this process."""
    urls = [storage.join(s3_server.url, "album", f"{n}.png") for n in range(5)]
    for number, url in enumerate(urls):
        storage.write_bytes(url, encode_png(photograph(40 + number, 52)))
    album = storage.join(s3_server.url, "album")
    monkeypatch.setattr(logging.getLogger("era"), "propagate", True)
    found, written = [], []
    for place in ("cluster", "threads"):
        if place == "threads":
            monkeypatch.setattr(parallel_map, "has_cluster", lambda: False)
        out = storage.join(s3_server.url, place)
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="era"):
            assert restore([album], out, run)["restored"] == 5
        assert "restore: 5 of 5" in caplog.text
        written.append([storage.read_bytes(f"{out}/{n}.png") for n in range(5)])
        found.append(evaluate(run, str(tiny_data / "train"), str(tmp_path / place)))
    assert written[0] == written[1]
    assert found[0].rows == found[1].rows
    assert found[0].summary == found[1].summary


@pytest.mark.parametrize("memory", [float("nan"), float("inf"), 0.0, -1.0])
def test_memory_must_be_some(memory: float) -> None:
    with pytest.raises(UserError, match="--memory"):
        pixels_for(named_config("tiny"), memory)
    assert pixels_for(named_config("tiny"), 2.0) > pixels_for(named_config("tiny"), 1.0)
