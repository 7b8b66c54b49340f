"""`era tune`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from pipeline.cli.common import ConfigName, JsonFlag, Overrides, run_verb, show_with_metrics

ResumeFailed = Annotated[
    bool, typer.Option("--resume-failed", help="Start trials again that failed for good.")
]


def tune(
    overrides: Overrides = None,
    config: ConfigName = "tiny",
    resume_failed: ResumeFailed = False,
    as_json: JsonFlag = False,
) -> None:
    """Search training settings; each trial is a whole run with checkpoints and exact resumption.

    The same command again resumes the sweep; with more `trials`, it adds them.

    Example: era tune --config tiny data.train=URL data.val=URL run.name=sweep
    """

    def work() -> dict[str, Any]:
        from pipeline.tune import tune as search

        return search(config, overrides or [], resume_failed)

    run_verb(work, show_with_metrics, as_json)
