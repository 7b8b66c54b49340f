"""`era train`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from pipeline.cli.common import (
    ConfigName,
    JsonFlag,
    Overrides,
    run_verb,
    show_summary,
    show_with_metrics,
)

DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Only say what would be done, from where, and what it takes."),
]


def train(
    overrides: Overrides = None,
    config: ConfigName = "tiny",
    dry_run: DryRun = False,
    as_json: JsonFlag = False,
) -> None:
    """Train a network, or continue the run of that name from its last checkpoint.

    Example: era train --config tiny data.train=URL data.val=URL run.name=first scaling.workers=2
    """
    if dry_run:
        run_verb(lambda: _dry_run(config, overrides or []), _show_plan, as_json)
    else:
        run_verb(lambda: _train(config, overrides or []), show_with_metrics, as_json)


def _dry_run(name: str, overrides: list[str]) -> dict[str, Any]:
    from pipeline.config import load_train_config
    from pipeline.train.dry_run import dry_run

    return dry_run(load_train_config(name, overrides))


def _show_plan(summary: dict[str, Any]) -> None:
    show_summary({**summary, "differs": "; ".join(summary["differs"]) or "nothing"})


def _train(name: str, overrides: list[str]) -> dict[str, Any]:
    from pipeline.config import load_train_config
    from pipeline.train import train

    return train(load_train_config(name, overrides))
