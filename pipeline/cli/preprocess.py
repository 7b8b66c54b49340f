"""`era preprocess`."""

from __future__ import annotations

from typing import Annotated

import typer

from pipeline.cli.common import JsonFlag, run_verb, show_summary


def preprocess(
    dataset: Annotated[
        str,
        typer.Option(
            help="dpdd, realdof, rtf, lfdof, cuhk, pixeldp, or folder (or a CSV of pairs)."
        ),
    ],
    source: Annotated[str, typer.Option(help="Path or URL of its folder (or CSV file).")],
    dest: Annotated[str, typer.Option(help="Folder or URL for the splits.")],
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave bad pairs out instead of stopping.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Convert a data set to shards; repeating the command continues where it stopped."""

    def work() -> dict[str, object]:
        from pipeline.preprocess import preprocess as convert

        return convert(dataset, source, dest, skip_bad)

    run_verb(work, show_summary, as_json)
