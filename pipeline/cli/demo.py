"""`era demo`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from pipeline.cli.common import JsonFlag, Overrides, run_verb, show_summary


def demo(
    overrides: Overrides = None,
    out: Annotated[str, typer.Option(help="Folder for all files of the demo.")] = "runs/demo",
    as_json: JsonFlag = False,
) -> None:
    """Run the whole chain on real photographs; the result is report.html."""

    def work() -> dict[str, Any]:
        from pipeline.demo import demo as run

        return run(out, overrides or [])

    run_verb(work, show_summary, as_json)
