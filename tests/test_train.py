"""The promise: whatever is killed, the same samples, the same curve, the same weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from small_run import STEPS, assert_same_run, assert_same_samples, config_of, curve

from era import named_config
from pipeline.checkpoint import load_model
from pipeline.config import load_train_config
from pipeline.errors import UserError
from pipeline.runfolder import read_result
from pipeline.train import train
from pipeline.train.dry_run import dry_run
from pipeline.train.setup import imitated

GOLDEN = Path(__file__).with_name("golden_curve.json")


def test_run_leaves_what_the_contract_says(undisturbed: dict[str, Any]) -> None:
    run = Path(undisturbed["run"])
    assert undisturbed["step"] == STEPS
    assert {"config.yaml", "attempts.jsonl", "metrics.jsonl", "samples.jsonl"} <= {
        path.name for path in run.iterdir()
    }
    lines = curve(undisturbed)
    assert [line["step"] for line in lines] == sorted(line["step"] for line in lines)
    assert "val/psnr" in lines[-1] and lines[-1]["step"] == STEPS
    steps = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    assert [line["step"] for line in steps] == list(range(STEPS))
    assert all(len(line["ids"]) == 5 for line in steps)
    assert (Path(undisturbed["best"]) / "COMMIT").exists()
    assert read_result(str(run)) == undisturbed
    (kept,) = (run / "logs").iterdir()
    assert kept.stem in {path.stem for path in (run / "attempts").iterdir()}


def test_curve_is_the_golden_one(undisturbed: dict[str, Any]) -> None:
    """A change of the method, the order or the optimiser shows here first."""
    found = [line["train/loss"] for line in curve(undisturbed) if "train/loss" in line]
    assert found == pytest.approx(json.loads(GOLDEN.read_text()), rel=1e-3)


def test_killed_workers_change_nothing(
    undisturbed: dict[str, Any],
    tiny_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tiny_data)  # relative paths mean the same to workers
    killed = train(config_of(Path(), tmp_path, "killed", "chaos.kill_every=7"))
    assert len((Path(killed["run"]) / "chaos.jsonl").read_text().splitlines()) == 2
    assert_same_run(undisturbed, killed)


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(
    undisturbed: dict[str, Any], tiny_data: Path, tmp_path: Path
) -> None:
    run = Path(undisturbed["run"])
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    again = ["debug.stop_at=3", "tracking.log_every=1"]
    found = dry_run(config_of(tiny_data, run.parent, run.name, *again))
    assert (found["action"], found["step"], found["hours"]) == ("none", STEPS, 0.0)
    assert sorted(found["differs"]) == ["debug.stop_at: 0 -> 3", "tracking.log_every: 2 -> 1"]
    assert found["estimate"] == "measured in this run" and found["step_seconds"] > 0
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    with pytest.raises(UserError, match=r"train.global_batch: 5 -> 7"):
        dry_run(config_of(tiny_data, run.parent, run.name, "train.global_batch=7"))
    found = dry_run(config_of(tiny_data, tmp_path, "new"))
    assert (found["action"], found["checkpoint"], found["differs"]) == ("start", "", [])
    assert "a model that assumes 0.03 TFLOP/s" in found["estimate"]
    on_gpus = dry_run(config_of(tiny_data, run.parent, run.name, "scaling.gpu=true"))
    assert on_gpus["differs"] == ["scaling.gpu: False -> True"]  # where there is none, too
    assert not list(tmp_path.iterdir())


def test_finished_run_says_so_and_only_restores_its_curve(
    undisturbed: dict[str, Any], tiny_data: Path
) -> None:
    run = Path(undisturbed["run"])
    attempts, metrics, samples = (run / f"{n}.jsonl" for n in ("attempts", "metrics", "samples"))
    before, curves = attempts.read_text(), [metrics.read_bytes(), samples.read_bytes()]
    metrics.unlink()
    samples.write_text(samples.read_text().partition("\n")[0] + "\n")  # a late write's
    root = Path(undisturbed["run"]).parent
    again = train(config_of(tiny_data, root, "undisturbed", "scaling.workers=1"))
    assert again == undisturbed
    assert attempts.read_text() == before
    assert [metrics.read_bytes(), samples.read_bytes()] == curves


def test_changed_frozen_key_is_refused_with_the_difference(
    undisturbed: dict[str, Any], tiny_data: Path
) -> None:
    root = Path(undisturbed["run"]).parent
    with pytest.raises(UserError, match=r"train\.learning_rate: 0\.001 -> 0\.5"):
        train(config_of(tiny_data, root, "undisturbed", "train.learning_rate=0.5"))


def test_strict_is_equal_to_the_bit_under_any_world_size(
    undisturbed_strict: dict[str, Any], tiny_data: Path, tmp_path: Path
) -> None:
    strict = "train.deterministic=strict"
    for workers, step in ((1, 2), (3, 9)):
        part = f"scaling.workers={workers}", f"debug.stop_at={step}"
        stopped = train(config_of(tiny_data, tmp_path, "changing", strict, *part))
        assert stopped["step"] == step
    changing = train(config_of(tiny_data, tmp_path, "changing", strict))
    sizes = [
        json.loads(line)["workers"]
        for line in (tmp_path / "changing" / "attempts.jsonl").read_text().splitlines()
    ]
    assert sizes == [1, 3, 2]
    assert_same_run(undisturbed_strict, changing)


@pytest.mark.full
def test_three_workers_are_equal_to_the_bit_too(
    ray_cluster: str, tiny_data: Path, tmp_path: Path
) -> None:
    three = train(config_of(tiny_data, tmp_path, "three", "scaling.workers=3"))
    killed = train(
        config_of(tiny_data, tmp_path, "killed", "scaling.workers=3", "chaos.kill_every=7")
    )
    assert_same_run(three, killed)


@pytest.mark.full
def test_other_world_size_sees_the_same_samples_and_nearly_the_same_curve(
    undisturbed: dict[str, Any], tiny_data: Path, tmp_path: Path
) -> None:
    one = train(config_of(tiny_data, tmp_path, "one", "scaling.workers=1"))
    assert_same_samples(one, undisturbed)


@pytest.mark.full
@pytest.mark.parametrize("recipe", ["light", "base", "paper"])
def test_recipes_for_gpus_run_whole_at_a_small_scale(
    recipe: str, ray_cluster: str, tiny_data: Path, tmp_path: Path
) -> None:
    """Each with its own network, loss and phases; samples fewer and smaller, on one processor."""
    small = [
        f"run.root={tmp_path}",
        f"data.train={tiny_data / 'train'}",
        f"data.val={tiny_data / 'val'}",
        "train.steps=2",
        "train.global_batch=1",
        "train.patch=[16]",
        "train.precision=fp32",
        "tracking.log_every=1",
        "tracking.wandb=disabled",
        "scaling.workers=1",
        "scaling.gpu=false",
    ]
    run = train(load_train_config(recipe, small))
    lines = curve(run)
    assert [line["step"] for line in lines if "train/loss" in line] == [1, 2]
    given = load_train_config(recipe)
    expected = named_config(given.model.size, **given.model.overrides)
    assert load_model(run["best"]).config == expected


@pytest.mark.full
def test_a_run_says_when_its_half_type_is_only_imitated(
    ray_cluster: str, tiny_data: Path, tmp_path: Path
) -> None:
    lines: list[str] = []
    half = "train.precision=fp16", "train.steps=1", "scaling.workers=1"
    config = config_of(tiny_data, tmp_path, "half", *half)
    train(config, on_event=lambda event: lines.append(event.line))
    advice = imitated("fp16", torch.device("cpu"))  # none on the few processors that have fp16
    assert [line for line in lines if "precision" in line] == [advice] * bool(advice)


def test_impossible_gpus_are_refused_at_once(
    ray_cluster: str, tiny_data: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"1 CPU and 1 GPU for each worker: .* have room for 0"):
        train(config_of(tiny_data, tmp_path, "gpus", "scaling.gpu=true"))


@pytest.mark.full
def test_nonfinite_steps_stop_a_run_past_its_budget(
    ray_cluster: str, tiny_data: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"gradient is not finite.*samples: "):
        train(
            config_of(
                tiny_data,
                tmp_path,
                "nan",
                "train.learning_rate=1e30",
                "train.clip_norm=0",
                "train.nonfinite_budget=1",
                "train.warmup=0",
            )
        )
    line = json.loads((tmp_path / "nan" / "nonfinite.jsonl").read_text().splitlines()[0])
    assert len(line["ids"]) == 5
