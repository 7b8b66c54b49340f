"""`era tune`."""

from __future__ import annotations

from typing import Any

import typer

from pipeline.cli.common import ConfigName, JsonFlag, Overrides, run_verb, show_summary


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("tune")(tune)


def tune(
    overrides: Overrides = None, config: ConfigName = "tiny", as_json: JsonFlag = False
) -> None:
    """Search training settings; every trial is a whole run that survives what a run survives.

    Example: era tune --config tiny data.train=URL data.val=URL run.name=sweep
    """

    def work() -> dict[str, Any]:
        from pipeline.tune import tune as search

        return search(config, overrides or [])

    run_verb(work, _show, as_json)


def _show(summary: dict[str, Any]) -> None:
    metrics = summary.pop("metrics")
    show_summary({**summary, **metrics})
