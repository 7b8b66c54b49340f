"""Sweeps: planned, refused, killed and continued, on a real cluster."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from conftest import S3Server
from small_run import SMALL_NETWORK

from pipeline import storage
from pipeline.config import load_train_config
from pipeline.errors import UserError
from pipeline.runs import list_runs
from pipeline.tune import tune
from pipeline.tune.config import load_sweep
from pipeline.tune.space import grid, random_points

SPACE = {"train.learning_rate": {"loguniform": [1e-4, 1e-2]}, "train.ema": {"choice": [0.5, 0.9]}}


def sweep_file(folder: Path, data: str, root: str, **changes: object) -> str:
    """A sweep of small runs."""
    values = {
        "config": "tiny",
        "overrides": [
            SMALL_NETWORK,
            f"run.root={root}",
            "run.name=sweep",
            f"data.train={data}/train",
            f"data.val={data}/val",
            "train.steps=8",
            "train.global_batch=2",
            "train.patch=[24]",
            "train.validate_every=4",
            "checkpoint.every=2",
            "tracking.wandb=disabled",
            "scaling.workers=1",
        ],
        "search": "random",
        "trials": 3,
        "space": SPACE,
        **changes,
    }
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return str(path)


# Points


def test_points_are_keyed_and_within_their_ranges() -> None:
    ten = random_points({**SPACE, "train.seed": {"int": [3, 5]}}, 10, seed=1)
    assert ten[:4] == random_points({**SPACE, "train.seed": {"int": [3, 5]}}, 4, seed=1)
    assert ten != random_points({**SPACE, "train.seed": {"int": [3, 5]}}, 10, seed=2)
    assert all(1e-4 <= point["train.learning_rate"] <= 1e-2 for point in ten)
    assert {point["train.seed"] for point in ten} <= {3, 4, 5}


def test_grid_has_every_combination_once() -> None:
    points = grid({"a": {"choice": [1, 2]}, "b": {"choice": ["x", "y", "z"]}})
    assert len(points) == 6
    assert points[1] == {"a": 1, "b": "y"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"space": {"train.learning_rat": {"choice": [1]}}}, "did you mean train.learning_rate"),
        ({"space": {"train.ema": {"uniform": [0.5, 2.0]}}}, "train.ema"),
        ({"space": {"train.ema": {"uniform": [0.9, 0.5]}}}, "least must be below"),
        ({"space": {"train.ema": {"loguniform": [0, 0.5]}}}, "above 0"),
        ({"space": {"train.ema": {"normal": [0, 1]}}}, "not one of choice"),
        ({"space": {}}, "space is empty"),
        ({"search": "grid"}, "a grid needs choices only"),
        ({"search": "bayes"}, "expected one of grid, random, tpe"),
        ({"scheduler": "pbt"}, "cannot exchange weights"),
        ({"trials": 0}, "trials must be at least 1"),
        ({"trails": 3}, "did you mean trials"),
    ],
)
def test_wrong_sweeps_are_refused(
    changes: dict[str, object], message: str, tiny_data: Path, tmp_path: Path
) -> None:
    path = sweep_file(tmp_path, str(tiny_data), str(tmp_path), **changes)
    with pytest.raises(UserError, match=message):
        load_sweep(path, [])


def test_what_cannot_run_is_refused(tiny_data: Path, tmp_path: Path) -> None:
    path = sweep_file(tmp_path, str(tiny_data), str(tmp_path), scheduler="asha")
    with pytest.raises(UserError, match=r"needs train\.validate_every"):
        load_sweep(path, ["train.validate_every=0"])
    with pytest.raises(UserError, match="val is empty"):
        load_sweep(path, ["data.val=''"])


def test_packaged_sweeps_load() -> None:
    for name in ("tiny", "asha"):
        sweep = load_sweep(name, ["data.train=x", "data.val=y"])
        assert load_train_config(sweep.config).model.size == "tiny"


# Sweeps


@pytest.mark.full
def test_sweep_on_s3_is_killed_and_goes_on(
    ray_cluster: str, tiny_data: Path, s3_server: S3Server, tmp_path: Path
) -> None:
    """The driver is killed in the middle: no trial is lost or run twice, and all are as planned."""
    root = storage.join(s3_server.url, "sweeps")
    path = sweep_file(tmp_path, str(tiny_data), root, concurrent=2)
    command = [sys.executable, "-m", "pipeline", "tune", "--config", path, "--json"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    url = storage.join(root, "sweep")
    for _ in range(900):
        if any("COMMIT" in e.relative for e in storage.find(url)):
            break
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.2)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["trials"], found["failed"]) == (3, 0)
    rows = list_runs(url)["runs"]
    assert sorted(row["name"] for row in rows) == ["trial-000", "trial-001", "trial-002"]
    assert all(row["step"] == 8 for row in rows)
    points = random_points(SPACE, 3, 0)
    for index, point in enumerate(points):
        config = yaml.safe_load(storage.read_text(f"{url}/trial-{index:03d}/config.yaml"))
        assert config["train"]["learning_rate"] == pytest.approx(point["train.learning_rate"])
        lines = storage.read_text(f"{url}/trial-{index:03d}/metrics.jsonl").splitlines()
        steps = [json.loads(line)["step"] for line in lines if "val/psnr" in line]
        assert steps == [4, 8]
    assert found["best"].startswith(rows[0]["url"])
    page = storage.read_text(storage.join(url, "sweep.html"))
    assert all(f"trial-00{index}" in page for index in range(3))
    again = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    assert json.loads(again.stdout)["best"] == found["best"]


@pytest.mark.full
def test_asha_stops_a_trial_that_learns_nothing(
    ray_cluster: str, tiny_data: Path, tmp_path: Path
) -> None:
    path = sweep_file(
        tmp_path,
        str(tiny_data),
        str(tmp_path),
        search="grid",
        scheduler="asha",
        reduction=2,
        concurrent=2,
        space={"train.learning_rate": {"choice": [4e-3, 3e-3, 2e-3, 0.0]}},
    )
    # So little regularisation that the network starts at 7 dB: who learns nothing stays there.
    overrides = ["model.overrides.lambda_2=1.0e-06", "train.prior_share=0", "train.ema=0.5"]
    overrides += ["train.estimator_share=0", "train.steps=80", "train.validate_every=10"]
    found = tune(path, [*overrides, "train.global_batch=4", "checkpoint.every=20"])
    rows = {row["name"]: row for row in list_runs(found["sweep"])["runs"]}
    assert rows["trial-003"]["step"] < 80
    assert "trial-003" not in found["best"]
    assert max(row["step"] for row in rows.values()) == 80


@pytest.mark.full
def test_tpe_and_a_failing_trial_set_aside(
    ray_cluster: str, tiny_data: Path, tmp_path: Path
) -> None:
    """A trial whose learning rate blows up is set aside with its error; the others finish."""
    path = sweep_file(
        tmp_path,
        str(tiny_data),
        str(tmp_path),
        search="tpe",
        trials=4,
        retries=0,
        concurrent=2,
        space={"train.learning_rate": {"choice": [1e-3, 1e30]}},
    )
    overrides = ["train.nonfinite_budget=0", "train.clip_norm=0", "train.warmup=0"]
    found = tune(path, [*overrides, "train.steps=12"])
    assert found["trials"] == 4
    rows = list_runs(found["sweep"])["runs"]
    assert sum(row["step"] == 12 for row in rows) == 4 - found["failed"]
    with pytest.raises(UserError, match="began with another"):
        tune(sweep_file(tmp_path, str(tiny_data), str(tmp_path), trials=9), overrides)
