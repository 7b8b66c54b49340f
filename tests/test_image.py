"""The image: its install lines in a fresh environment, without an engine that builds images."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
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


def run_here(command: str, folder: Path, **environment: str) -> None:
    """Run a line in a folder that stands for the image's root; the locks there are copies."""
    for lock in ROOT.glob("requirements*.lock"):
        if not (folder / lock.name).exists():
            shutil.copy(lock, folder)
    places = {
        "/opt/": f"{folder}/opt/",
        "/tmp/": f"{folder}/",
        "/code": f"{folder}/code",
        " /src": f" {folder}/src",
        "python3 ": f"{sys.executable} ",
    }
    command = re.sub("|".join(places), lambda found: places[found.group()], command)
    done = subprocess.run(
        ["bash", "-ec", command],
        env={**os.environ, "TORCH_INDEX_URL": "", **environment},
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stderr[-2000:]}"


def test_image_is_the_locks_and_nobodys_root() -> None:
    assert "pip install --require-hashes -r /tmp/requirements.lock" in DOCKERFILE
    final = DOCKERFILE.rpartition("\nFROM ")[2]
    assert "\nUSER 1000\n" in final
    assert "LABEL org.opencontainers.image" in final
    assert final.index("COPY --from=dependencies") < final.index("from=code")  # two layers


@pytest.mark.full
def test_an_image_without_cuda_takes_the_locked_torch_of_another_index(tmp_path: Path) -> None:
    """A wheel that stands for PyTorch's; pip takes its local version for the locked one."""
    (locked,) = re.findall(r"^torch==(\S+)", (ROOT / "requirements.lock").read_text(), re.M)
    wheel = tmp_path / "index" / "torch" / f"torch-{locked}+cpu-py3-none-any.whl"
    wheel.parent.mkdir(parents=True)
    about = {
        "METADATA": f"Metadata-Version: 2.1\nName: torch\nVersion: {locked}+cpu\n",
        "WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "RECORD": "",
    }
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in about.items():
            archive.writestr(f"torch-{locked}+cpu.dist-info/{name}", text)
    (wheel.parent / "index.html").write_text(f'<a href="{wheel.name}">{wheel.name}</a>')
    environment, choice = (c for c in commands() if "venv" in c or "TORCH_INDEX_URL" in c)
    run_here(environment, tmp_path)
    run_here(choice, tmp_path, TORCH_INDEX_URL=wheel.parents[1].as_uri())
    assert "requirements-cuda" not in (tmp_path / "requirements.lock").read_text()
    (tmp_path / "torch.lock").write_text(f"torch=={locked} --hash=sha256:{'0' * 64}\n")
    pip = [tmp_path / "opt/era/bin/pip", "install", "--require-hashes", "-r"]
    done = subprocess.run(
        [*pip, tmp_path / "torch.lock"], capture_output=True, text=True, check=True
    )
    assert "already satisfied" in done.stdout


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
    for command in commands():
        if not command.startswith(IMAGE_ONLY):
            run_here(command, tmp_path)
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
    short = ["train.steps=6", "train.patch=[32]", "tracking.wandb=disabled"]
    done = run("demo", "--out", "demo", *short)  # with nothing that only the tests need
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "demo" / "report.html").stat().st_size > 10**6
