"""`era verify`."""

from __future__ import annotations

from typing import Annotated

import typer

from pipeline.cli.common import JsonFlag, run_verb, show_summary


def verify(
    url: Annotated[str, typer.Argument(help="A split, or a folder of splits.")],
    quick: Annotated[
        bool, typer.Option("--quick", help="Check sizes and headers only, by range requests.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Check that every shard and every sample matches its manifest."""

    def work() -> dict[str, object]:
        from pipeline.verify import verify as check

        return check(url, quick)

    run_verb(work, show_summary, as_json)
