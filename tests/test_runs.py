"""Looking at runs, and taking the best one home; locally and on S3, without a cluster."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from conftest import S3Server
from faulty_proxy import faulty_proxy
from safetensors.torch import load_file, save

from era import ErA, named_config, parameter_count
from pipeline import storage
from pipeline.checkpoint import CheckpointStore, load_model, open_checkpoint
from pipeline.cli.common import show_summary
from pipeline.cli.runs import _show_rows, _show_run, _table
from pipeline.config import load_train_config
from pipeline.data.manifest import load_manifest
from pipeline.errors import StorageDown, UserError
from pipeline.restore import restore
from pipeline.runfolder import RunFolder, fingerprint, freeze, frozen_hash, outcome
from pipeline.runs import best_run, compare_runs, list_runs, pull, show_run
from pipeline.runs.card import model_card

SMALL = (
    "model.overrides={stages: 1, kernels: 2, kernel_size: 5, radius_max: 2.0,"
    " prior_channels: [4], error_channels: [4], estimator_channels: [4]}"
)

COMMIT_OF = (
    '{{"format": "era-checkpoint/1", "step": 10, "metrics": {metrics},'
    ' "files": {{"{name}": {{"bytes": {size}, "sha256": "' + "0" * 64 + '"}}}}}}'
)


def make_run(root: str, name: str, scores: list[float], rate: float) -> str:
    """A run as training leaves it: config.yaml, metrics.jsonl and checkpoints."""
    config = load_train_config("tiny", [SMALL, f"train.learning_rate={rate}", "train.steps=30"])
    url = storage.join(root, name)
    freeze(url, config)
    store = CheckpointStore(url)
    lines: list[str] = []
    for number, score in enumerate(scores, start=1):
        torch.manual_seed(number)
        model = ErA(named_config("tiny", **config.model.overrides))
        lines.append(json.dumps({"step": 10 * number, "val/psnr": score}) + "\n")
        store.save(
            step=10 * number,
            model=model.state_dict(),
            training={},
            meta={
                "step": 10 * number,
                "model": model.config.to_dict(),
                "frozen_sha256": frozen_hash(config),
                "data_manifest_sha256": "f" * 64,
            },
            files={"metrics.jsonl": "".join(lines).encode()},
            metrics={"val/psnr": score, "train/loss": 1 / score},
            keep_best=3,
        )
    store.wait()
    return url


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Two runs below one root."""
    place = str(tmp_path / "runs")
    if request.param == "s3":
        place = storage.join(request.getfixturevalue("s3_server").url, "runs")
    make_run(place, "good", [20.0, 27.0, 26.0], 1e-3)
    make_run(place, "poor", [21.0], 1e-2)
    return place


def test_list_show_best_and_compare(root: str) -> None:
    rows = list_runs(root)["runs"]
    assert [(row["name"], row["value"], row["step"]) for row in rows] == [
        ("good", 27.0, 30),
        ("poor", 21.0, 10),
    ]
    assert best_run(root)["step"] == 20
    assert best_run(root, "train/loss")["value"] == pytest.approx(1 / 27)
    shown = show_run(storage.join(root, "good"))
    names = [storage.name_of(row["checkpoint"]) for row in shown["checkpoints"]]
    assert names == [f"step-{step:08d}" for step in (10, 20, 30)]
    assert all(row["saved"].endswith("+00:00") for row in shown["checkpoints"])
    differences = compare_runs([root])["differences"]
    assert differences == {"train.learning_rate": [1e-3, 1e-2]}
    with pytest.raises(UserError, match="val/lpips"):
        best_run(root, "val/lpips")


def test_a_folder_that_cannot_be_read_hides_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A volume's root has `lost+found`; what else may not be read is said, or the best is wrong."""
    make_run(str(tmp_path), "good", [20.0], 1e-3)
    (tmp_path / "lost+found").mkdir()
    truly = storage.list_names

    def listed(url: str) -> list[str]:
        if not url.endswith(("good", tmp_path.name)):
            raise UserError(f"{url}: permission denied")
        return truly(url)

    monkeypatch.setattr("pipeline.runs.search.is_run", lambda url: "config.yaml" in listed(url))
    assert [row["name"] for row in list_runs(str(tmp_path))["runs"]] == ["good"]
    (tmp_path / "another").mkdir()
    with pytest.raises(UserError, match="another: permission denied"):
        list_runs(str(tmp_path))


def test_best_of_different_validation_data_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    urls = [make_run(str(tmp_path), name, [20.0], 1e-3) for name in ("a", "b")]
    best_run(str(tmp_path))
    assert "data.val" not in caplog.text
    config = Path(urls[1]) / "config.yaml"
    config.write_text(yaml.safe_dump({**yaml.safe_load(config.read_text()), "data": {"val": "z"}}))
    best_run(str(tmp_path))
    assert "val/psnr of runs with different data.val is compared: " in caplog.text


def test_tables_are_one_line_a_row_for_a_pipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(str(tmp_path), "a-run-of-a-name-that-is-" + "long-" * 20, [20.0, 21.0], 1e-3)
    _show_rows(list_runs(str(tmp_path)))
    assert len(capsys.readouterr().out.splitlines()) == 2
    RunFolder(run).begin_attempt(load_train_config("tiny"), 20)
    _show_run(show_run(run))
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["attempt", "started", "workers", "resumed", "from"] in lines
    assert any(line[:1] == ["1"] and line[-1] == "20" for line in lines)


def test_no_control_sequence_reaches_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    show_summary({"lineage \x1b[31mred": 1})
    _table({"a": "\x1b]0;title\x07"}, [{"a": 1}])
    assert "\x1b" not in capsys.readouterr().out


def test_pulled_bundle_restores_a_photograph(root: str, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    assert pull(root, str(bundle))["step"] == 20
    assert pull(root, str(bundle))["step"] == 20  # complete already
    card = (bundle / "README.md").read_text()
    for wanted in (
        "apache-2.0",
        f"{parameter_count(load_model(str(bundle)).model):,} parameters: 1 stages, 2 kernels of 5",
        "f" * 64,
        "learning_rate: 0.001",
        "step 20 of 30",
        "protocol `standard`",
        "| val/psnr | 27.0000 |",
        "wider than a disk of 2 pixels",
        "## Licence",
    ):
        assert wanted in card
    assert load_model(str(bundle)).meta["step"] == 20
    cv2.imwrite(str(tmp_path / "a.png"), np.full((20, 24, 3), 90, np.uint8))
    assert restore([str(tmp_path / "a.png")], str(tmp_path / "out"), str(bundle))["restored"] == 1


def test_a_card_describes_the_runs_own_data_alone(tiny_data: Path, tmp_path: Path) -> None:
    """Whatever lies where a stranger's configuration says."""
    url = str(tiny_data / "train")
    digest = load_manifest(url)[1]
    model = ErA(named_config("tiny", **load_train_config("tiny", [SMALL]).model.overrides))
    store = CheckpointStore(str(tmp_path))
    config = {"data": {"train": url, "val": "/etc/`x\n# Heading"}}
    for step, known in enumerate(("f" * 64, digest), start=1):
        meta = {"step": step, "model": model.config.to_dict(), "data_manifest_sha256": known}
        state = model.state_dict()
        store.save(step=step, model=state, training={}, meta=meta, files={}, metrics={})
    store.wait()
    cards = [model_card(open_checkpoint(store.url_of(step)), config, "a", 7) for step in (1, 2)]
    assert f"`{url}` (other data were there" in cards[0]
    assert "dpdd" not in cards[0]
    assert "dpdd layout, split train: " in cards[1]
    assert "- val: `/etc/'x # Heading`" in cards[1]


def test_an_interrupted_pull_is_completed_by_the_same_command(
    tmp_path: Path, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights arrive, then access ends; the next try does not fetch them again."""
    run = make_run(storage.join(s3_server.url, "runs"), "one", [25.0], 1e-3)
    broken, asked = [True], []

    def plan(method: str, path: str) -> str:
        if method != "GET":
            return ""
        asked.append(path.partition("?")[0])
        weights_are_there = (bundle / "model.safetensors").exists()
        return "ExpiredToken" if broken[0] and weights_are_there else ""

    bundle = tmp_path / "bundle"
    with faulty_proxy(s3_server.endpoint, plan) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        with pytest.raises(UserError, match="credentials have expired"):
            pull(run, str(bundle))
        assert [path.name for path in bundle.iterdir()] == ["model.safetensors"]
        broken[0] = False
        asked.clear()
        pull(storage.join(run, "checkpoints", "step-00000010"), str(bundle))
    assert not [path for path in asked if path.endswith("model.safetensors")]
    load_model(str(bundle))


def test_a_commands_log_is_kept_whole_of_its_end_and_without_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "dearest-secret")
    monkeypatch.setattr(outcome, "KEPT", 300)
    logger, url = logging.getLogger("era"), str(tmp_path)
    logger.setLevel("INFO")

    def run(attempt: str, error: Exception | None, require: Callable[[], object]) -> str:
        with suppress(ValueError, UserError), outcome.KeptLog() as kept:
            for number in range(20):
                logger.info("line %d of dearest-secret", number)
            kept.keep(url, attempt, require)
            if error:
                raise error
        logger.info("later")
        path = tmp_path / "logs" / f"{attempt}.log"
        return path.read_text() if path.exists() else ""

    for text in (run("a", None, list), run("b", ValueError("dearest-secret\nbroke"), list)):
        assert 200 < len(text) <= 300 and "dearest" not in text and "later" not in text
        assert "line 19 of ***\n" in text
    assert text.endswith("ended by ValueError: *** broke\n")

    def taken_over() -> None:
        raise UserError("attempt 2 has taken it over since")

    assert run("c", None, taken_over) == run("d", StorageDown("no answer"), list) == ""


def test_a_foreign_result_is_none(tmp_path: Path) -> None:
    for text in ("", "[1]", "{", '{"a": NaN}'):
        (tmp_path / "result.json").write_text(text)
        assert outcome.read_result(str(tmp_path)) is None
    outcome.write_result(str(tmp_path), {"best": "s3://key:word@b/x", "step": 3})
    assert outcome.read_result(str(tmp_path)) == {"best": "s3://***@b/x", "step": 3}


def test_damage_is_found(tmp_path: Path) -> None:
    run = make_run(str(tmp_path), "one", [25.0], 1e-3)
    weights = Path(run) / "checkpoints" / "step-00000010" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(UserError, match="damaged"):
        pull(storage.join(run, "checkpoints", "step-00000010"), str(tmp_path / "bundle"))


def test_a_folder_of_an_included_networks_name_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    make_run(str(tmp_path), "tiny", [25.0], 1e-3)
    (tmp_path / "photographs").mkdir()  # no network: nothing to say
    monkeypatch.chdir(tmp_path)
    for name in ("tiny", "photographs"):
        load_model(name)
    assert caplog.text.count("the included network is meant; for the folder give ./") == 1
    assert load_model("./tiny").url.startswith(str(tmp_path))


@pytest.mark.parametrize("dtype", [torch.int64, torch.float8_e4m3fn, torch.complex64, torch.bool])
def test_weights_of_other_types_are_damage(dtype: torch.dtype, tmp_path: Path) -> None:
    run = make_run(str(tmp_path), "one", [25.0], 1e-3)
    folder = Path(run) / "checkpoints" / "step-00000010"
    state = load_file(folder / "model.safetensors")
    name = next(iter(state))
    state[name] = state[name].to(dtype)
    data = save(state)
    (folder / "model.safetensors").write_bytes(data)
    commit = json.loads((folder / "COMMIT").read_text())
    commit["files"]["model.safetensors"] = fingerprint(data)
    (folder / "COMMIT").write_text(json.dumps(commit))
    with pytest.raises(UserError, match="weights are of float types"):
        load_model(str(folder))


def test_what_pull_refuses(tmp_path: Path) -> None:
    run = make_run(str(tmp_path), "one", [25.0], 1e-3)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("x")
    with pytest.raises(UserError, match=r"holds thesis\.txt"):
        pull(run, str(tmp_path / "full"))
    for names in (["README.md"], ["model.safetensors"], ["README.md", "model.safetensors"]):
        mine = tmp_path / "-".join(names)
        mine.mkdir()
        for name in names:
            (mine / name).write_text("mine")
        with pytest.raises(UserError, match="holds "):
            pull(run, str(mine))
        assert [(mine / name).read_text() for name in names] == ["mine"] * len(names)
    with pytest.raises(UserError, match="this is a file; give a folder"):
        pull(run, str(tmp_path / "full" / "thesis.txt"))
    with pytest.raises(UserError, match=r"thesis\.txt.*not a folder"):
        pull(run, str(tmp_path / "full" / "thesis.txt" / "below"))
    with pytest.raises(UserError, match="local folder"):
        pull(run, "s3://bucket/x")
    with pytest.raises(UserError, match="no run there"):
        pull(str(tmp_path / "full"), str(tmp_path / "bundle"))


DAMAGE = {
    "config.yaml": ["train: 5", "train: {steps: abc}", "a: 2001-99-99", "data: [1]", "- x", "{"],
    "attempts.jsonl": ["[1]", '{"attempt": 1, "id', "\x00", '{"attempt": ' + "[" * 5000],
    "metrics.jsonl": ["5", '{"step": "x"}', '{"step": 1, "val/psnr": 1e999}'],
    "checkpoints/newest.json": ["7", '{"step": -1}', '{"step": true}'],
    "checkpoints/step-00000010/COMMIT": [
        "5",
        '{"format": 7}',
        '{"format": "era-checkpoint/9"}',
        COMMIT_OF.format(metrics='{"val/psnr": "x"}', name="meta.json", size=1),
        COMMIT_OF.format(metrics="{}", name="../meta.json", size=1),
        COMMIT_OF.format(metrics="[]", name="meta.json", size=1),
        COMMIT_OF.format(metrics="{}", name="meta.json", size="1" * 400),
        COMMIT_OF.format(metrics="{}", name="meta.json", size=10**17),
    ],
    "checkpoints/step-00000010/meta.json": ["5", "[" * 5000],
}


def test_one_damaged_run_hides_no_other(tmp_path: Path) -> None:
    make_run(str(tmp_path), "good", [25.0], 1e-3)
    bad = Path(make_run(str(tmp_path), "bad", [24.0], 1e-3))
    for name, contents in DAMAGE.items():
        sound = (bad / name).read_bytes() if (bad / name).exists() else b""
        for content in contents:
            (bad / name).write_text(content)
            rows = {row["name"]: row for row in list_runs(str(tmp_path))["runs"]}
            assert set(rows) == {"good", "bad"}, content
            assert rows["good"]["value"] == 25.0
            assert json.loads(json.dumps(rows, allow_nan=False)) == rows
            show_run(str(bad))
            assert best_run(str(tmp_path))["run"].endswith("good")
        (bad / name).write_bytes(sound)
