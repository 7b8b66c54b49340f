"""Configuration: typed, overridable, and never silently wrong."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from omegaconf import OmegaConf

from era import ErA, cost, named_config
from pipeline.config import FROZEN_SECTIONS, TrainConfig, load_train_config, to_plain
from pipeline.errors import UserError
from pipeline.train.freeze import freeze, frozen_hash

DOCS = Path(__file__).parents[1] / "docs" / "configuration.md"


def test_packaged_configurations_load() -> None:
    for name in ("tiny", "base", "paper"):
        assert load_train_config(name).model.size == name
    light = load_train_config("light").model
    parameters = [
        cost(named_config(light.size, **o), 64, 64).parameters for o in (light.overrides, {})
    ]
    assert parameters[0] < parameters[1] / 4


def test_overrides_and_files(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("train: {steps: 7}\nscaling: {workers: [1, 3]}\n")
    config = load_train_config(str(path), ["train.patch=[32]", "model.overrides={stages: 1}"])
    assert (config.train.steps, config.train.patch, config.scaling.workers) == (7, [32], [1, 3])
    assert config.model.overrides == {"stages": 1}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.step=5", "unknown key train.step; did you mean train.steps"),
        ("data.trian=x", "did you mean data.train"),
        ("train.steps=many", "train.steps"),
        ("train.steps=0", "train.steps must be at least 1"),
        ("train.steps", "expected key=value"),
        ("model.size=huge", "unknown size 'huge'"),
        ("model.overrides={stage: 2}", "did you mean stages"),
        ("train.precision=int8", "train.precision"),
        ("train.deterministic=maybe", "train.deterministic"),
        ("scaling.workers=0", "scaling.workers"),
        ("scaling.workers=[3, 1]", "scaling.workers"),
        ("scaling.workers=9", "train.global_batch"),
        ("run.name=a/b", "run.name"),
        ("loss.omega=2", "loss.omega"),
        ("loss.omega=nan", "loss.omega"),
        ("run.name=${foo}", "run.name: Interpolation key 'foo' not found"),
        ("run.name=???", "Missing mandatory value: run.name"),
        ("train.seed=-1", "train.seed must be from 0"),
        ("train.seed=1" + 30 * "0", "train.seed must be from 0"),
        ("train.weight_decay=-1", "train.weight_decay must be at least 0 and finite"),
        ("train.learning_rate=nan", "train.learning_rate"),
        ("train.learning_rate=inf", "train.learning_rate"),
        ("train.min_learning_rate=-1", "train.min_learning_rate"),
        ("train.scalar_rate=-5", "train.scalar_rate"),
        ("train.estimator_share=nan", "train.estimator_share"),
        ("train.clip_norm=inf", "train.clip_norm"),
        ("cache.max_gb=nan", "cache.max_gb"),
        ("cache.max_gb=inf", "cache.max_gb"),
        ("debug.stop_at=-1", "debug.stop_at"),
        ("tracking.images=-1", "tracking.images"),
        ("model.overrides={lambda_1: .inf}", "lambda_1 must be from"),
        ("model.overrides={lambda_1: .nan}", "lambda_1 must be from"),
        ("model.overrides={lambda_1: 1.0e+9}", "lambda_1 must be from"),
    ],
)
def test_wrong_values_are_one_clear_line(override: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load_train_config("tiny", [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_wrong_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no packaged train config \(base, light, paper, tiny\)"):
        load_train_config("small")
    with pytest.raises(UserError, match="no such file"):
        load_train_config(str(tmp_path / "none.yaml"))
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(UserError, match="not valid YAML"):
        load_train_config(str(tmp_path / "bad.yaml"))
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(UserError, match="expected a mapping"):
        load_train_config(str(tmp_path / "list.yaml"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("run: {name: 2020-01-01}", "run.name: Value 'date' is not a supported"),
        ("null: 3", "Incompatible key type 'NoneType'"),
        ("run: &run\n  name: *run", "a value contains itself"),
        ("run: {name: '${run.name}'}", "run.name: Recursive interpolation"),
        ("run: {name: '${foo}'}", "run.name: Interpolation key 'foo' not found"),
        ("train.steps: 5", "keys are nested: `train: {steps: ...}`"),
        ("train: {step: 5}", "unknown key train.step; did you mean train.steps"),
    ],
)
def test_wrong_values_of_a_file_are_one_clear_line(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_train_config(str(path))
    assert message in str(caught.value)
    assert str(path) in str(caught.value) or str(caught.value).startswith("config: ")
    assert "\n" not in str(caught.value)


def test_greatest_scalars_make_a_network() -> None:
    config = named_config("tiny", **dict.fromkeys(("lambda_1", "lambda_2", "lambda_3"), 1e6))
    config = replace(config, lambda_e=1e-9)
    scalars = torch.stack(ErA(config).scalars(0))
    torch.testing.assert_close(scalars, torch.tensor([1e6, 1e6, 1e6, 1e-9]), rtol=1e-3, atol=0)


def test_tiny_runs_with_any_steps_and_batch() -> None:
    for steps in (1, 2, 3):
        config = load_train_config("tiny", [f"train.steps={steps}", "train.global_batch=2"])
        assert config.train.steps == steps


def test_frozen_keys_are_frozen_and_free_ones_free(tmp_path: Path) -> None:
    config = load_train_config("tiny")
    freeze(str(tmp_path), config)
    freeze(str(tmp_path), load_train_config("tiny", ["scaling.workers=1", "checkpoint.every=7"]))
    for override in ("train.seed=1", "model.size=base", "loss.omega=0.4", "data.window=2"):
        with pytest.raises(UserError, match=override.partition("=")[0]):
            freeze(str(tmp_path), load_train_config("tiny", [override]))
    assert frozen_hash(config) == frozen_hash(load_train_config("tiny", ["cache.max_gb=1"]))


def test_folder_with_something_else_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(UserError, match=r"holds thesis\.txt but no config\.yaml"):
        freeze(str(tmp_path), load_train_config("tiny"))


def test_documentation_has_every_key_with_its_default_and_a_meaning() -> None:
    rows = re.findall(r"^\| `(\w+\.\w+)` \| `(.*)` \| (.+) \|$", DOCS.read_text(), re.MULTILINE)
    documented = {key: yaml.safe_load(default) for key, default, _ in rows}
    plain = to_plain(OmegaConf.to_object(OmegaConf.structured(TrainConfig)))
    values = {f"{s}.{key}": value for s, keys in plain.items() for key, value in keys.items()}
    assert documented.keys() == values.keys()
    for key, value in values.items():
        assert type(value)(documented[key]) == value, key
    for section in plain:
        assert (f"## `{section}` (frozen)" in DOCS.read_text()) == (section in FROZEN_SECTIONS)
