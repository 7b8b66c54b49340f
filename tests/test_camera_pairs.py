"""Pairs made during training, the training that uses them, and the GPU benchmark, on a CPU."""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import skimage.data
import torch
from safetensors.torch import load_file, save_file

from benchmarks import gpu, photograph_network
from benchmarks.camera_pairs import CameraPairs
from era import ErA
from pipeline.errors import UserError
from pipeline.evaluate.lpips import Lpips, load_lpips
from pipeline.inference import restore_array


def photos() -> list[torch.Tensor]:
    image = cv2.resize(skimage.data.astronaut(), (160, 160), interpolation=cv2.INTER_AREA)
    return [torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)]


def test_a_batch_is_a_function_of_seed_and_step() -> None:
    one, again = (CameraPairs(photos(), 4.0, seed=1).batch(7, 3, 64) for _ in range(2))
    other = CameraPairs(photos(), 4.0, seed=1).batch(8, 3, 64)
    for name in ("blur", "sharp", "radius"):
        assert torch.equal(getattr(one, name), getattr(again, name))
        assert not torch.equal(getattr(one, name), getattr(other, name))
    assert one.blur.shape == one.sharp.shape == (3, 3, 64, 64)
    assert one.radius.shape == (3, 1, 64, 64)
    for image in (one.blur, one.sharp):
        assert image.min() >= 0
        assert image.max() <= 1
    assert one.radius.max() <= 4.0


def test_wider_blur_is_worse() -> None:
    """The same scenes through lenses of other strengths."""
    errors = []
    for radius_max in (0.3, 3.0, 12.0):
        pairs = CameraPairs(photos(), radius_max, seed=2)
        pairs.margin = 14  # the same windows
        batch = pairs.batch(0, 6, 64)
        errors.append(float((batch.blur - batch.sharp).abs().mean()))
    assert errors == sorted(errors)
    assert errors[2] > 2 * errors[0]


def test_training_writes_weights_that_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"kernels": 3, "kernel_size": 7, "radius_max": 3.0, "prior_channels": (8, 8)}
    monkeypatch.setattr(photograph_network, "CONFIG", {**small, "prior_sees_blur": True})
    monkeypatch.setattr(photograph_network, "RADIUS_MAX", 3.0)
    ticks = itertools.count(0.0, 0.1)  # the same few steps on every machine
    monkeypatch.setattr(photograph_network, "time", SimpleNamespace(monotonic=ticks.__next__))
    recipe = photograph_network.Recipe(((0.0, 2, 32),), 0.05, 1e-3, 0.999, 0, 1.0)
    asked = argparse.Namespace(
        out=tmp_path, seconds=1.0, seed=0, device="cpu", begin=None, perceptual=None
    )
    photograph_network.train(asked, recipe, photos())
    model = ErA(photograph_network.config())
    model.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    model.eval()
    image = cv2.resize(skimage.data.coffee(), (521, 560), interpolation=cv2.INTER_AREA)
    whole = restore_array(model, image, max_pixels=10**9)
    tiled = restore_array(model, image, max_pixels=300 * 300)
    assert np.abs(whole.restored - tiled.restored).max() < 0.25 / 255


@pytest.mark.parametrize("blend", [0.0, 1.0])
def test_learning_on_with_lpips(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blend: float
) -> None:
    """The final weights lie between those it began with and those it has learned."""
    small = {"kernels": 3, "kernel_size": 7, "radius_max": 3.0, "prior_channels": (8, 8)}
    monkeypatch.setattr(photograph_network, "CONFIG", small)
    monkeypatch.setattr(photograph_network, "RADIUS_MAX", 3.0)
    begin, alexnet = tmp_path / "begin.safetensors", tmp_path / "alexnet.pth"
    model = ErA(photograph_network.config()).train()
    first = model.state_dict()
    save_file(first, begin)
    trunk = Lpips().features.state_dict()  # random features judge as well here
    torch.save({f"features.{name}": value for name, value in trunk.items()}, alexnet)
    batch = CameraPairs(photos(), 3.0, seed=0).batch(0, 2, 32)
    without, terms = (
        photograph_network.losses(model, batch, alone=False, lpips=judge)
        for judge in (None, load_lpips(str(alexnet)))
    )
    assert terms[-1] > 0
    torch.testing.assert_close(terms[0], without[0] + photograph_network.PERCEPTUAL * terms[-1])
    recipe = photograph_network.Recipe(((0.0, 2, 32),), 0.0, 1e-3, 0.9, 0, blend)
    asked = argparse.Namespace(
        out=tmp_path, seconds=1.0, seed=0, device="cpu", begin=begin, perceptual=str(alexnet)
    )
    photograph_network.train(asked, recipe, photos())
    last = load_file(tmp_path / "weights.safetensors")
    assert all(torch.equal(first[name], last[name]) for name in last) == (blend == 0)


def test_gpu_benchmark_runs_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU; what needs none of it is checked all the same."""
    monkeypatch.setattr("sys.argv", ["gpu", "--out", str(tmp_path), "--device", "cpu"])
    gpu.main()
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert {row["part"] for row in rows} == {"correct", "training", "operator", "loader"}
    assert all(row["ok"] is not False for row in rows)
    assert "4 of 4 checks hold" in (tmp_path / "gpu.md").read_text()
    bench = gpu.Bench(100.0, "cpu")
    bench.run("correct", "broken", lambda: (str(1 / 0), True))
    bench.end = 0.0
    bench.run("training", "late", lambda: ("never", None))
    assert [row.ok for row in bench.rows] == [False, None]
    assert bench.rows[1].found == "left out: no time"


def test_listed_photographs_are_fetched_cropped_and_shrunk(tmp_path: Path) -> None:
    """From a real server; what is not the listed file ends the fetch, and what is there stays."""
    from benchmarks.photograph_list import fetch

    served = tmp_path / "served" / "a" / "wall papers" / "c0"
    served.mkdir(parents=True)
    light = np.linspace(0, 255, 400, dtype=np.uint8)
    cv2.imwrite(str(served / "my picture.png"), np.dstack([np.tile(light, (300, 1))] * 3))
    digest = hashlib.sha256((served / "my picture.png").read_bytes()).hexdigest()
    rows = [
        ("whole.jpg", "my picture.png", digest, "full frame", "0.5"),
        ("part.png", "my picture.png", digest, "crop x100-300 y0-50", "1"),
        ("light.png", "light.exr", digest, "full frame", "1"),
    ]
    head = ("file", "path", "sha256_original", "crop", "scale", "repository", "commit")
    listed = tmp_path / "list.tsv"
    lines = [head, *((*row, "a/wall papers", "c0") for row in rows)]
    listed.write_text("".join("\t".join(line) + "\n" for line in lines))
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "served"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        source = f"http://127.0.0.1:{server.server_address[1]}"
        out = tmp_path / "out"
        assert fetch(out, listed, source) == ["light.png"]
        whole, part = (cv2.imread(str(out / row[0])) for row in rows[:2])
        assert whole.shape == (150, 200, 3)
        assert part.shape == (50, 200, 3)
        assert abs(int(part[0, 0, 0]) - int(light[100])) <= 1
        (out / "part.png").unlink()
        (served / "my picture.png").write_bytes(b"another")
        with pytest.raises(UserError, match=r"my%20picture\.png: another file than"):
            fetch(out, listed, source)
        assert [path.name for path in out.iterdir()] == ["whole.jpg"]
        (served / "my picture.png").unlink()
        with pytest.raises(UserError, match="404"):
            fetch(out, listed, source)
        server.shutdown()
