"""`era restore`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from pipeline.cli.common import JsonFlag, run_verb, show_summary
from pipeline.imports import uncollected


def restore(
    inputs: Annotated[
        list[str], typer.Argument(metavar="INPUT...", help="Photographs, folders, patterns.")
    ],
    out: Annotated[str, typer.Option(help="Folder for the restored photographs.")],
    checkpoint: Annotated[
        str,
        typer.Option(
            help="A run (its best checkpoint), a checkpoint, a bundle, or a shipped model."
        ),
    ] = "photographs",
    working_scale: Annotated[
        str,
        typer.Option(
            help="Below 1 for blur beyond the model's range; auto chooses 1, 0.5 or 0.25."
        ),
    ] = "1",
    strength: Annotated[
        float, typer.Option(help="From 0 to 1: how much of the correction is applied.")
    ] = 1.0,
    memory: Annotated[
        float, typer.Option(help="GB for a photograph and the network; decides the tiles.")
    ] = 3.0,
    compare: Annotated[bool, typer.Option("--compare", help="Write NAME.compare.png too.")] = False,
    maps: Annotated[
        bool, typer.Option("--maps", help="Write the blur radius, weight and error maps too.")
    ] = False,
    device: Annotated[str, typer.Option(help="cpu, or cuda: where the network runs.")] = "cpu",
    as_json: JsonFlag = False,
) -> None:
    """Restore photographs; each keeps its name, kind of file, bit depth, colours and metadata."""

    def work() -> dict[str, Any]:
        with uncollected():
            from pipeline.restore import restore as restore_all

        return restore_all(
            inputs, out, checkpoint, working_scale, memory, compare, maps, strength, device
        )

    run_verb(work, show_summary, as_json)
