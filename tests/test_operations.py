"""docs/operations.md against the code: quoted messages, settings, and the sizing model's tables."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "operations.md").read_text()


def messages() -> list[str]:
    """What the runbook's first columns quote: anything of several words."""
    runbook = PAGE[PAGE.index("## Runbook") : PAGE.index("## The life")]
    rows = [line.split("|")[1] for line in runbook.splitlines() if line.startswith("| ")]
    quoted = [text for row in rows for text in re.findall(r"`([^`]+)`", row)]
    return [text for text in quoted if text.count(" ") >= 2]


def spoken() -> list[str]:
    """The program's source with its strings joined, and what differs as an ellipsis.

    Twice: with the innermost braces replaced (dictionaries of messages are kept), and with all.
    """
    source = "\n".join(path.read_text() for path in sorted((ROOT / "pipeline").rglob("*.py")))
    joined = re.sub(r'"\s*(?:\+ )?\n\s*f?"', "", source)
    differs = re.compile(r"\{[^{}]*\}|%[sd]")
    inner = outer = differs.sub("…", joined)
    while differs.search(outer):
        outer = differs.sub("…", outer)
    return [inner, outer]


def test_quoted_messages_are_the_programs() -> None:
    """Whole quotations: what stands between the ellipses must be one message's, in this order."""
    known, quoted = spoken(), messages()
    assert len(quoted) > 30
    assert not [text for text in quoted if not any(text in source for source in known)]


def test_timeline_has_the_manifests_seconds() -> None:
    manifest = (ROOT / "k8s" / "base" / "ray-cluster.yaml").read_text()
    drain = re.search(r"--deadline-remaining-seconds (\d+)", manifest)
    grace = re.search(r"terminationGracePeriodSeconds: (\d+)", manifest)
    assert drain is not None
    assert grace is not None
    assert f"a drain of {drain[1]} seconds within a grace period of {grace[1]}" in " ".join(
        PAGE.split()
    )


def test_sizing_tables_are_the_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.sizing import arguments, tables

    shown = PAGE.partition("<!-- sizing -->")[2].partition("<!-- /sizing -->")[0]
    assert shown.strip() == tables(arguments([]))
