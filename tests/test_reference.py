"""The generated reference pages are what the code says; imports and declarations agree."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize("name", ["commands.md", "configuration.md"])
def test_reference_pages_are_generated_from_the_code(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    from generate import PAGES

    assert (ROOT / "docs" / name).read_text() == PAGES[name](), "run `make docs`"


def distribution(requirement: str) -> str:
    """The normalised name in a requirement."""
    return canonical(re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0])


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def imported(package: str) -> set[str]:
    """Top-level modules that a package's files import, at any depth of the code."""
    names: set[str] = set()
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names.update(alias.name.partition(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.partition(".")[0])
    return names - set(sys.stdlib_module_names) - {"era", "pipeline"}


def test_what_is_imported_is_declared_and_what_is_declared_is_imported() -> None:
    known = packages_distributions()
    used = {canonical(known[m][0]) for m in imported("era") | imported("pipeline") if m in known}
    unknown = (imported("era") | imported("pipeline")) - known.keys()
    extras = {
        distribution(line)
        for name, lines in PROJECT["optional-dependencies"].items()
        if name not in ("test", "lint", "dev")
        for line in lines
    }
    assert not {canonical(name) for name in unknown} - extras
    declared = {distribution(line) for line in PROJECT["dependencies"]}
    assert used - extras == declared


def test_the_method_needs_torch_alone() -> None:
    assert imported("era") == {"torch"}


def documented(verb: str) -> set[str]:
    """The keys that docs/json.md promises of a verb."""
    page = (ROOT / "docs" / "json.md").read_text()
    (row,) = re.findall(rf"^\| `{verb}` \| (.+) \|$", page, re.MULTILINE)
    return set(re.findall(r"`(\w+)`", row))


def test_summaries_have_the_documented_keys(tmp_path: Path) -> None:
    from pipeline.preprocess import preprocess
    from pipeline.synthesize import synthesize
    from pipeline.verify import verify

    pairs, shards = str(tmp_path / "pairs"), str(tmp_path / "shards")
    made = synthesize("bundled", pairs, pairs=3, seed=1, size=(48, 48), radius_max=2.0)
    assert made.keys() == documented("synthesize")
    assert preprocess("dpdd", pairs, shards).keys() == documented("preprocess")
    assert verify(shards).keys() == documented("verify")
