"""The project itself: its locks, and what it must never contain."""

from __future__ import annotations

import re
import subprocess
import tomllib
from graphlib import TopologicalSorter
from importlib.metadata import version
from pathlib import Path

import grimp
import pytest
from packaging.requirements import Requirement

from pipeline.demo import PACKAGES

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


LOCKS = ("requirements.lock", "requirements-cuda.lock", "requirements-dev.lock")
PIN = re.compile(r"^([a-z0-9-]+)==([a-z0-9.]+)(?: ; [^\\]+)? \\$")


def lock(name: str) -> dict[str, str]:
    """The versions of a lock, without what it includes."""
    found = map(PIN.match, (ROOT / name).read_text().splitlines())
    return {match[1]: match[2] for match in found if match}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("name", LOCKS)
def test_locks_hold_public_versions_with_hashes_only(name: str) -> None:
    hashes = 0
    for line in reversed((ROOT / name).read_text().splitlines()):
        if re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}(?: \\)?", line):
            hashes += 1
        elif line != "-r requirements-cuda.lock":
            assert PIN.match(line), line
            assert hashes, line
            hashes = 0


def test_cuda_libraries_are_a_lock_of_their_own() -> None:
    """They belong to torch's public wheels for Linux; other builds of torch need none of them."""
    cuda = re.compile("nvidia-|cuda-|triton")
    assert not list(filter(cuda.match, [*lock(LOCKS[0]), *lock(LOCKS[2])]))
    assert all(map(cuda.match, lock(LOCKS[1])))
    assert (ROOT / LOCKS[0]).read_text().endswith("\n-r requirements-cuda.lock\n")


def test_locks_meet_the_requirements() -> None:
    runtime = lock("requirements.lock")
    assert runtime.keys() >= set(PACKAGES)  # whose versions the demo reports
    everything = runtime | lock("requirements-dev.lock")
    wanted = [(runtime, line) for line in PROJECT["dependencies"]]
    wanted += [
        (everything, line)
        for extra, lines in PROJECT["optional-dependencies"].items()
        if extra
        not in (
            "photos",
            "gcs",
            "azure",
        )  # installed by users who want it, into environments of their own
        for line in lines
    ]
    for locked, line in wanted:
        requirement = Requirement(line)
        if requirement.name == PROJECT["name"]:
            continue
        assert requirement.specifier.contains(locked[canonical(requirement.name)]), line
    assert runtime["torch"] == "2.13.0"


def test_this_environment_is_the_locks() -> None:
    locked = lock("requirements.lock") | lock("requirements-dev.lock")
    for name in ("torch", "ray", "numpy", "webdataset", "s3fs"):
        assert version(name).partition("+")[0] == locked[name]


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


PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "benchmarks").glob("*.md")]


def test_links_and_pictures_of_the_documentation_exist() -> None:
    for page in PAGES:
        text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
        for link in re.findall(r"\]\(((?!http)[^)]+)\)", text):
            name, _, anchor = link.partition("#")
            target = page.parent / name if name else page
            assert target.exists(), f"{page.name}: {link}"
            assert not anchor or anchor in anchors(target), f"{page.name}: {link}"


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


def test_index_lists_every_page_and_the_front_page_is_short() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "README.md" or f"]({page.name})" in index, (
            f"add {page.name} to docs/README.md"
        )
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 90
    assert max(map(len, lines)) <= 120


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = grimp.build_graph("era", "pipeline", cache_dir=None)
    imports = {name: graph.find_modules_directly_imported_by(name) for name in graph.modules}
    list(TopologicalSorter(imports).static_order())  # raises CycleError


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
    for name in ("photographs", "tiny"):
        assert f"pipeline/models/{name}/model.safetensors" in names
