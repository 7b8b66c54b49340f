"""The project itself: its locks, and what it must never contain."""

from __future__ import annotations

import re
import subprocess
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def lock(name: str) -> dict[str, str]:
    lines = (ROOT / name).read_text().split()
    return dict(line.split("==") for line in lines)


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-dev.lock"])
def test_locks_hold_public_versions_only(name: str) -> None:
    for line in (ROOT / name).read_text().splitlines():
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line), line
        assert not line.startswith("nvidia")


def test_locks_meet_the_requirements() -> None:
    runtime = {canonical(k): v for k, v in lock("requirements.lock").items()}
    everything = runtime | {canonical(k): v for k, v in lock("requirements-dev.lock").items()}
    wanted = [(runtime, line) for line in PROJECT["dependencies"]]
    wanted += [
        (everything, line) for extra in PROJECT["optional-dependencies"].values() for line in extra
    ]
    for locked, line in wanted:
        requirement = Requirement(line)
        if requirement.name == PROJECT["name"]:
            continue
        assert requirement.specifier.contains(locked[canonical(requirement.name)]), line
    assert runtime["torch"] == "2.13.0"


def test_this_environment_is_the_locks() -> None:
    for name in ("torch", "ray", "numpy", "webdataset", "s3fs"):
        assert version(name).partition("+")[0] == lock("requirements.lock")[name]


def test_no_absolute_path_host_or_secret_is_kept() -> None:
    names = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    forbidden = re.compile(r"/(home|root|work)/|AKIA[0-9A-Z]{16}|pypi-more")
    for name in names:
        path = ROOT / name
        if path.suffix in {".py", ".md", ".yaml", ".toml", ".lock", ".svg", ".html"}:
            text = path.read_text()
            assert name == "tests/test_project.py" or not forbidden.search(text), name


def test_pictures_of_the_documentation_exist() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for link in re.findall(r"\]\(((?!http)[^)#]+)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


@pytest.mark.full
def test_wheel_holds_configurations_and_templates(tmp_path: Path) -> None:
    import sys
    import zipfile

    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path), str(ROOT)],
        check=True,
    )
    names = zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist()
    assert "pipeline/_configs/train/tiny.yaml" in names
    assert "pipeline/_k8s/base/ray-cluster.yaml" in names
    assert "pipeline/report/templates/report.html" in names
    assert "pipeline/models/tiny/model.safetensors" in names
