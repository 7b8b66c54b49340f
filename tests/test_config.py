"""Configuration: typed, overridable, and never silently wrong."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import pytest
import torch
import yaml

from era import ErA, cost, named_config, updates
from era.config import P_FORMS, X_FORMS
from pipeline.config import (
    FROZEN_SECTIONS,
    TrainConfig,
    Workers,
    load_train_config,
    parse_train_config,
    to_plain,
)
from pipeline.errors import UserError
from pipeline.runfolder import freeze, frozen, frozen_hash
from pipeline.train.driver import git_revision

DOCS = Path(__file__).parents[1] / "docs" / "configuration.md"
TINY_HASH = "90d2f124a83ccb63f3abd5fbc942c57d3a0ca86506c7065fa0664f1cce60510a"


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
    assert (config.train.steps, config.train.patch) == (7, (32,))
    assert config.scaling.workers == Workers(1, 3)
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
        ("run.name=${foo}", "run.name '${foo}' must be letters"),
        ("run.name=???", "run.name '???' must be letters"),
        ("train.patch.0=64", "give the whole list: train.patch="),
        ("train.patch[0]=3", "unknown key train.patch[0]; did you mean train.patch"),
        ("train.patch=64", "train.patch: expected a list"),
        ("train.steps=²", "train.steps: expected a whole number, got '²'"),
        ("train.steps=" + 5000 * "9", "train.steps: expected a whole number"),
        ("train.steps=[1", "not valid YAML"),
        ("train.steps=!!int 5", "tags (!) are not allowed"),
        ("train.tf32=maybe", "train.tf32: expected true or false"),
        ("data.train=a\x1bb", "without control characters"),
        ("data.train=a\udc80b", "without control characters"),
        ("scaling.workers=[1, 2, 3]", "scaling.workers: must be a number >= 1 or [least, most]"),
        ("train=5", "unknown key train; it is a section"),
        ("model.overrides=[1]", "model.overrides: expected a mapping"),
        ("model.overrides.size=base", "unknown field size"),
        ("model.overrides.stages=null", "stages must be of type int, got None"),
        ("model.overrides.stages=1" + 30 * "0", "stages must be from 1 to"),
        ("model.overrides.stages=" + 5000 * "9", "model.overrides"),
        ("model.overrides.prior_channels=[[1]]", "prior_channels must list"),
        ("model.overrides.prior_channels=[true]", "prior_channels must list"),
        ("model.overrides.kernel_size=1000001", "kernel_size must be odd and"),
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
        ("null: 3", "unknown key null"),
        ("run: &run\n  name: *run", "a value contains itself (line 2"),
        ("train.steps: 5", "keys are nested: `train: {steps: ...}`"),
        ("train: {step: 5}", "unknown key train.step; did you mean train.steps"),
        ("train: {steps: many}", "train.steps: expected a whole number, got 'many' (line 1)"),
        ("train: {steps: 5}\ntrain: {seed: 1}", "the key 'train' is given twice (line 2"),
        ("train: {steps: 5, steps: 6}", "the key 'steps' is given twice"),
        ("train: [1]", "train: expected a mapping of keys (line 1)"),
        ("model: {overrides: [1]}", "model.overrides: expected a mapping"),
        ("train: {steps: !!int abc}", "tags (!) are not allowed (line 1"),
        ("run: {name: !!python/object:os.system x}", "tags (!) are not allowed"),
        ("x: 2001-01-01 99:99:99", "unknown key x"),
        (f"train: {{steps: {5000 * '9'}}}", "train.steps: expected a whole number"),
        (f"model: {{overrides: {{stages: {5000 * '9'}}}}}", "model.overrides"),
        ("{[a, b]: 1}", "a key must be a single word"),
        ("? {a: 1}\n: 2", "a key must be a single word"),
        ("a: 1\n---\nb: 2", "not valid YAML"),
        ("a: *b", "undefined alias"),
        ("a: \x01", "not valid YAML"),
        (30 * "[" + 30 * "]", "nested more than 20 deep"),
        (50_000 * "[", "nested more than 20 deep"),
        ("a: " + 300_000 * "x", "larger than 256 KiB"),
        (f"a: [{20_000 * 'x,'}]", "more than 10000 values"),
    ],
)
def test_wrong_values_of_a_file_are_one_clear_line(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_train_config(str(path))
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_aliases_cannot_multiply_without_bound(tmp_path: Path) -> None:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x, x]"]
    for old, new in itertools.pairwise("abcdefghij"):
        lines.append(f"{new}: &{new} [{','.join(10 * [f'*{old}'])}]")
    (tmp_path / "laughs.yaml").write_text("\n".join(lines))
    with pytest.raises(UserError, match="more than 10000 values, aliases included"):
        load_train_config(str(tmp_path / "laughs.yaml"))


@pytest.mark.parametrize(
    "name", ["2024_01_01", "1.10", "no", "0x10", "1e3", "2024-01-01", "null", "007", "true"]
)
def test_a_text_is_taken_as_written(name: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(f"run: {{name: {name}}}\n")
    for config in (
        load_train_config(str(tmp_path / "mine.yaml")),
        load_train_config("tiny", [f"run.name={name}"]),
    ):
        assert config.run.name == name
        assert parse_train_config(yaml.safe_dump(to_plain(config)), "again") == config


def test_an_empty_value_means_none(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("data: {train: a, val: b}\n")
    for empty in ("data.val=", 'data.val=""', "data.val=''"):
        assert load_train_config(str(tmp_path / "mine.yaml"), [empty]).data.val == ""


def test_a_folder_of_a_packaged_name_is_not_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as a run's: `era runs pull URL --to tiny`."""
    (tmp_path / "tiny").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_train_config("tiny").model.size == "tiny"
    with pytest.raises(UserError, match="no regular file"):
        load_train_config("./tiny")


def test_a_revision_that_a_run_could_not_keep_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ERA_REVISION", "abc\n")  # as a mounted file has it
    assert git_revision() == "abc"
    config = load_train_config("tiny")
    config = replace(config, run=replace(config.run, revision="a\nb"))
    with pytest.raises(UserError, match=r"run\.revision: expected a text without control"):
        freeze(str(tmp_path / "run"), config)
    assert not (tmp_path / "run").exists()


def test_the_environment_stays_unread(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ERA_HIDDEN", "made-up-secret")
    text = "${oc.env:ERA_HIDDEN}"
    (tmp_path / "mine.yaml").write_text(f"tracking: {{project: '{text}'}}\n")
    assert load_train_config(str(tmp_path / "mine.yaml")).tracking.project == text
    with pytest.raises(UserError) as caught:
        load_train_config("tiny", [f"train.steps={text}"])
    assert "made-up-secret" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"run: {name: \xff}")
    os.mkfifo(tmp_path / "fifo.yaml")
    (tmp_path / "folder.yaml").mkdir()
    for name in ("latin.yaml", "fifo.yaml", "folder.yaml", "a" * 5000, "a\0b", "../train/tiny"):
        with pytest.raises(UserError) as caught:
            load_train_config(str(tmp_path / name) if name.endswith("yaml") else name)
        assert len(str(caught.value)) < 400
        assert name != "fifo.yaml" or "no regular file" in str(caught.value)


def test_a_configuration_survives_its_file(tmp_path: Path) -> None:
    given = ["scaling.workers=[1, 3]", "train.deterministic=true", "train.min_learning_rate=1e-7"]
    config = load_train_config("light", given)
    assert to_plain(config)["scaling"]["workers"] == [1, 3]
    assert to_plain(config)["train"]["deterministic"] is True
    for text in (yaml.safe_dump(to_plain(config)), json.dumps(to_plain(config))):
        assert parse_train_config(text, "again") == config
    with pytest.raises(FrozenInstanceError):
        config.train.steps = 1  # type: ignore[misc]


def test_the_frozen_hash_of_existing_runs_is_kept() -> None:
    """A run that began with an older version continues with this one."""
    assert frozen_hash(load_train_config("tiny")) == TINY_HASH


def test_a_configuration_loads_without_torch() -> None:
    code = (
        "import sys; import pipeline.config; from pipeline.config import load_train_config; "
        "load_train_config('base'); sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_updates_have_the_names_of_the_configuration() -> None:
    assert tuple(updates.X_FORMS) == X_FORMS
    assert tuple(updates.P_FORMS) == P_FORMS


def test_greatest_scalars_make_a_network() -> None:
    config = named_config("tiny", **dict.fromkeys(("lambda_1", "lambda_2", "lambda_3"), 1e6))
    config = replace(config, lambda_e=1e-9)
    scalars = torch.stack(ErA(config).scalars(0))
    torch.testing.assert_close(scalars, torch.tensor([1e6, 1e6, 1e6, 1e-9]), rtol=1e-3, atol=0)


def test_tiny_loads_with_any_number_of_steps() -> None:
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


def test_of_two_first_starts_at_once_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other command writes its configuration after this one has looked for one."""
    real, other = frozen.has_begun, load_train_config("tiny", ["train.seed=1"])

    def look(url: str, config: TrainConfig) -> bool:
        begun = real(url, config)
        if config is not other and not begun:
            monkeypatch.setattr(frozen, "has_begun", real)
            freeze(url, other)
        return begun

    monkeypatch.setattr(frozen, "has_begun", look)
    with pytest.raises(UserError, match=r"train\.seed: 1 -> 0"):
        freeze(str(tmp_path), load_train_config("tiny"))
    freeze(str(tmp_path), other)


@pytest.mark.parametrize("key", ["checkpoint.every", "tracking.log_every", "debug.stop_at"])
def test_numbers_that_a_run_could_not_keep_are_refused(key: str) -> None:
    with pytest.raises(UserError, match=f"{key} must be at most"):
        load_train_config("tiny", [f"{key}=100000000000000000000"])
    with pytest.raises(UserError, match=r"cache\.max_gb must be at most"):
        load_train_config("tiny", ["cache.max_gb=1e300"])


def test_folder_with_something_else_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(UserError, match=r"holds thesis\.txt but no config\.yaml"):
        freeze(str(tmp_path), load_train_config("tiny"))


def test_documentation_has_every_key_with_its_default_and_a_meaning() -> None:
    rows = re.findall(r"^\| `(\w+\.\w+)` \| `(.*)` \| (.+) \|$", DOCS.read_text(), re.MULTILINE)
    documented = {key: yaml.safe_load(default) for key, default, _ in rows}
    plain = to_plain(TrainConfig())
    values = {f"{s}.{key}": value for s, keys in plain.items() for key, value in keys.items()}
    assert documented.keys() == values.keys()
    for key, value in values.items():
        assert type(value)(documented[key]) == value, key
    for section in plain:
        assert (f"## `{section}` (frozen)" in DOCS.read_text()) == (section in FROZEN_SECTIONS)
