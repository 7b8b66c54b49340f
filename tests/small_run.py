"""A run of some seconds that many tests train, and what it means that two runs are the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pipeline.config import TrainConfig, load_train_config
from pipeline.runfolder import RunFolder

SMALL_NETWORK = (
    "model.overrides={stages: 3, kernels: 3, kernel_size: 7, radius_max: 3.0,"
    " prior_channels: [4, 8], error_channels: [4], estimator_channels: [4]}"
)
STEPS = 20


def config_of(data: Path, root: Path, name: str, *overrides: str) -> TrainConfig:
    """A run of some seconds that goes through all phases and patch sizes."""
    return load_train_config(
        "tiny",
        [
            SMALL_NETWORK,
            f"run.root={root}",
            f"run.name={name}",
            f"data.train={data / 'train'}",
            f"data.val={data / 'val'}",
            "data.crops_per_image=3",
            f"train.steps={STEPS}",
            "train.global_batch=5",
            "train.patch=[24, 32]",
            "train.validate_every=4",
            "checkpoint.every=3",
            "tracking.log_every=2",
            "tracking.wandb=disabled",
            "debug.log_samples=true",
            "scaling.workers=2",
            *overrides,
        ],
    )


def weights(summary: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The averaged weights of the last checkpoint."""
    latest = RunFolder(summary["run"]).latest()
    assert latest is not None and latest.step == STEPS
    return load_file(Path(latest.url) / "model.safetensors")


def curve(summary: dict[str, Any]) -> list[dict[str, float]]:
    """metrics.jsonl without what the clock says."""
    lines = (Path(summary["run"]) / "metrics.jsonl").read_text().splitlines()
    clock = ("time/", "memory/", "train/samples_per_second")
    return [{k: v for k, v in json.loads(x).items() if not k.startswith(clock)} for x in lines]


def assert_same_samples(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Samples crc for crc; losses up to the order of sums."""
    samples = [(Path(run["run"]) / "samples.jsonl").read_text() for run in (one, other)]
    assert samples[0] == samples[1]
    assert len(samples[0].splitlines()) == STEPS
    losses = [[x["train/loss"] for x in curve(run) if "train/loss" in x] for run in (one, other)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def assert_same_run(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Samples crc for crc, curve and weights to the bit."""
    assert_same_samples(one, other)
    assert curve(one) == curve(other)
    a, b = weights(one), weights(other)
    assert all(torch.equal(a[name], b[name]) for name in a)
