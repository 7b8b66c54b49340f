"""The command line as a user meets it: exit codes, one clear line, JSON as the last line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import S3Server

from pipeline import storage

PREPROCESS = ["preprocess", "--dataset", "dpdd", "--source", "{tmp}/empty", "--dest", "{tmp}/x"]
EVALUATE = ["evaluate", "--checkpoint", "{tmp}/no", "--data", "{tmp}", "--out", "{tmp}/x"]
VERBS = ("demo", "synthesize", "preprocess", "verify", "train", "evaluate", "restore", "runs")
VERBS += ("submit",)


def era(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipeline", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=120,
        check=False,
    )


def refused(*arguments: str) -> str:
    """The one line with which a command refuses."""
    done = era(*arguments)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    lines = done.stderr.strip().splitlines()
    assert [line for line in lines if "error" in line.lower()] == lines[-1:]
    assert lines[-1].startswith("error: ")
    return lines[-1]


def test_help_lists_every_verb_and_nothing_else() -> None:
    shown = era("--help").stdout
    listed = [
        line.split()[1]
        for line in shown.splitlines()
        if line.startswith("│ ") and line[2:3].isalpha()
    ]
    assert set(VERBS) <= set(listed)
    for verb in VERBS:
        assert "Usage" in era(verb, "--help").stdout


def test_json_is_the_last_line_and_the_only_one(tmp_path: Path) -> None:
    done = era("synthesize", "--dest", str(tmp_path), "--pairs", "3", "--size", "48x40", "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["train_pairs"] == 1
    assert len(done.stdout.strip().splitlines()) == 1
    assert "synthesize: 3 of 3" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["synthesize", "--dest", "{tmp}/x", "--size", "wide"], "expected WIDTHxHEIGHT"),
        (["synthesize", "--dest", "/proc/era"], "/proc/era"),
        (["synthesize", "--dest", "{tmp}/x", "--photos", "{tmp}/empty"], "no image in this folder"),
        (
            ["preprocess", "--dataset", "dpdd", "--source", "{tmp}/empty", "--dest", "{tmp}/x"],
            "no image",
        ),
        (["verify", "{tmp}/empty"], "was it preprocessed"),
        (["train", "train.stepz=3"], "did you mean train.steps"),
        (["train"], "data.train is empty"),
        (["train", "data.train={tmp}/empty"], "make it with `era preprocess`"),
        (["train", "data.train={tmp}/empty", "--config", "tinny"], "no packaged train config"),
        (
            ["evaluate", "--checkpoint", "{tmp}/no", "--data", "{tmp}", "--out", "{tmp}/x"],
            "no manifest",
        ),
        (["restore", "{tmp}/no.png", "--out", "{tmp}/x"], "no such photograph"),
        (["runs", "list", "{tmp}/nowhere"], "nowhere"),
        (["verify", "ftp://host/x"], "not supported"),
        (["restore", "", "--out", "{tmp}/x"], "an empty URL"),
        (["restore", "{tmp}/photo.png", "--out", ""], "an empty URL"),
        (["train", "run.name=${foo}"], "run.name: Interpolation key 'foo' not found"),
        (["train", "--confg", "tiny"], "No such option: --confg"),
        (["synthesize", "--dest", "{tmp}/x", "--pairs", "abc"], "--pairs"),
    ],
)
def test_wrong_input_is_one_clear_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "photo.png").touch()
    assert message in refused(*(part.replace("{tmp}", str(tmp_path)) for part in arguments))


def test_missing_bucket_and_no_secret_shown(s3_server: S3Server) -> None:
    line = refused("verify", "s3://never-made/data")
    assert "no such bucket" in line
    assert s3_server.environment["AWS_SECRET_ACCESS_KEY"] not in line


def test_no_verb_shows_the_help() -> None:
    done = era()
    assert done.returncode == 2
    assert "synthesize" in done.stdout
    assert done.stderr == ""


def test_bad_pairs_set_aside_end_with_2(tiny_pairs: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(tiny_pairs, tmp_path / "in")
    bad = next((tmp_path / "in" / "train_c" / "source").iterdir())
    bad.write_text("not a picture")
    arguments = ["preprocess", "--dataset", "dpdd", "--source", str(tmp_path / "in")]
    done = era(*arguments, "--dest", str(tmp_path / "out"), "--skip-bad", "--json")
    assert done.returncode == 2
    assert json.loads(done.stdout)["skipped"] == 1
    assert bad.name in done.stderr
    assert storage.exists(str(tmp_path / "out" / "train" / "manifest.json"))
