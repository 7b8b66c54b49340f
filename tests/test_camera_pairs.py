"""Pairs made during training, the training that uses them, and the GPU benchmark, on a CPU."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.data
import torch

from benchmarks import gpu, photograph_network
from benchmarks.camera_pairs import CameraPairs
from era import ErA
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
    monkeypatch.setattr(photograph_network, "SIZES", ((0.0, 2, 32),))
    monkeypatch.setattr(photograph_network, "RADIUS_MAX", 3.0)
    asked = argparse.Namespace(
        out=tmp_path, seconds=1.0, seed=0, device="cpu", shrink=1, begin=None
    )
    photograph_network.train(asked, photos())
    from safetensors.torch import load_file

    model = ErA(photograph_network.config())
    model.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    model.eval()
    image = cv2.resize(skimage.data.coffee(), (521, 560), interpolation=cv2.INTER_AREA)
    whole = restore_array(model, image, max_pixels=10**9)
    tiled = restore_array(model, image, max_pixels=300 * 300)
    assert np.abs(whole.restored - tiled.restored).max() < 0.25 / 255


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
