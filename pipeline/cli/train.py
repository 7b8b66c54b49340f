"""`era train`."""

from __future__ import annotations

from typing import Any

import typer

from pipeline.cli.common import (
    ConfigName,
    JsonFlag,
    Overrides,
    run_verb,
    show_summary,
)


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("train")(train)


def train(
    overrides: Overrides = None, config: ConfigName = "tiny", as_json: JsonFlag = False
) -> None:
    """Train a network, or continue the run of that name from its last checkpoint.

    Example: era train --config tiny data.train=URL data.val=URL run.name=first scaling.workers=2
    """
    run_verb(lambda: _train(config, overrides or []), _show, as_json)


def _train(name: str, overrides: list[str]) -> dict[str, Any]:
    from pipeline.config import load_train_config
    from pipeline.train import train

    return train(load_train_config(name, overrides))


def _show(summary: dict[str, Any]) -> None:
    metrics = summary.pop("metrics")
    show_summary({**summary, **metrics})
