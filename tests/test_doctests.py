"""The examples in the docstrings of the method run, and say the truth."""

from __future__ import annotations

import doctest
import importlib
import re
from pathlib import Path
from typing import Any

import pytest
import torch

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


ROOT = Path(__file__).parents[1]


def code_of(page: str) -> str:
    """All Python blocks of a page, in order."""
    return "\n".join(re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL))


def test_code_of_the_front_page() -> None:
    names: dict[str, Any] = {"blur": torch.rand(1, 3, 40, 48)}
    exec(compile(code_of("README.md"), "README.md", "exec"), names)
    output = names["output"]
    assert output.restored.shape == names["blur"].shape
    assert output.weights.shape == (1, output.kernels.shape[1], 40, 48)
    assert output.error.shape == names["blur"].shape


def test_code_that_reads_shards(tiny_data: Path) -> None:
    code = code_of("docs/own-data.md").replace("data/shards", str(tiny_data))
    names: dict[str, Any] = {}
    exec(compile(code, "docs/own-data.md", "exec"), names)
    assert names["sample"]["blur.npy"].dtype == "uint16"
    assert names["sample"]["sharp.npy"].shape == names["sample"]["blur.npy"].shape
