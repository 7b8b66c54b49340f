"""The examples in the docstrings of the method run, and say the truth."""

from __future__ import annotations

import doctest
import importlib
import re
from pathlib import Path

import pytest

MODULES = ("era.blur", "era.updates", "era.pretrained")


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0
    assert result.failed == 0


def test_page_on_deepinv() -> None:
    """The page's code, where deepinv is installed."""
    pytest.importorskip("deepinv", reason="pip install deepinv runs the code of docs/deepinv.md")
    page = (Path(__file__).parents[1] / "docs" / "deepinv.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(compile(code, "docs/deepinv.md", "exec"), {})
