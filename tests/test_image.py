"""The image: its install lines in a fresh environment, without an engine that builds images."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
IMAGE_ONLY = ("useradd", "install -d", "chmod")  # parts of a line that need a machine of their own


def commands() -> list[str]:
    """The Dockerfile's RUN lines, in order, part by part."""
    lines = [line[4:] for line in DOCKERFILE.splitlines() if line.startswith("RUN ")]
    plain = [re.sub(r"--mount=\S+", "", line) for line in lines]
    return [part.strip() for line in plain for part in line.split("&&")]


def sent_to_the_build() -> list[str]:
    """What .dockerignore lets through."""
    lines = (ROOT / ".dockerignore").read_text().split()
    assert lines[0] == "*"  # data, runs and secrets stay out
    return [line[1:] for line in lines if line.startswith("!")]


def test_image_is_the_locks_and_nobodys_root() -> None:
    assert "pip install --require-hashes -r /tmp/requirements.lock" in DOCKERFILE
    final = DOCKERFILE.rpartition("\nFROM ")[2]
    assert "\nUSER 1000\n" in final
    assert "LABEL org.opencontainers.image" in final
    assert final.index("COPY --from=dependencies") < final.index("from=code")  # two layers


@pytest.mark.full
@pytest.mark.timeout(1800)  # torch's CUDA libraries are several GB
def test_install_lines_work_in_a_fresh_environment(tmp_path: Path) -> None:
    source = tmp_path / "src"
    for name in sent_to_the_build():
        if (ROOT / name).is_dir():
            skip = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, source / name, ignore=skip)
        else:
            source.mkdir(exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    places = {
        "/opt/": f"{tmp_path}/opt/",
        "/tmp/requirements.lock": str(ROOT / "requirements.lock"),
        "/code": f"{tmp_path}/code",
        " /src": f" {source}",
        "python3 ": f"{sys.executable} ",
    }
    for command in commands():
        if command.startswith(IMAGE_ONLY):
            continue
        for old, new in places.items():
            command = command.replace(old, new)
        done = subprocess.run(
            ["bash", "-ec", command], capture_output=True, text=True, timeout=1500, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stderr[-2000:]}"
    shutil.copytree(tmp_path / "code", tmp_path / "opt" / "era", dirs_exist_ok=True)  # as COPY
    era = tmp_path / "opt" / "era" / "bin" / "era"

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        clean = {"PATH": f"{era.parent}:/usr/bin:/bin", "HOME": str(tmp_path)}
        return subprocess.run(
            [era, *arguments], cwd=tmp_path, env=clean, capture_output=True, text=True, check=False
        )

    assert "Usage: era" in run("--help").stdout
    found = {c["check"]: c for c in json.loads(run("doctor", "--json").stdout)["checks"]}
    assert found["packages"] == {
        "check": "packages",
        "state": "ok",
        "text": "as in requirements.lock",
    }
    refused = run("train", "--config", "paper")  # packaged configurations are found
    assert (refused.returncode, refused.stderr.strip()) == (
        2,
        "error: data.train is empty: give the URL of a preprocessed split",
    )
