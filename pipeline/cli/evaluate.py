"""`era evaluate`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from pipeline.cli.common import JsonFlag, run_verb, show_summary
from pipeline.imports import uncollected


def evaluate(
    checkpoint: Annotated[
        str, typer.Option(help="A run (its best), a checkpoint, a bundle, or a shipped model.")
    ],
    data: Annotated[str, typer.Option(help="URL of a split.")],
    out: Annotated[str, typer.Option(help="Folder for per_image.csv and gallery.html.")],
    protocol: Annotated[str, typer.Option(help="standard, or nrknet.")] = "standard",
    lpips_weights: Annotated[
        str, typer.Option(help="torchvision's AlexNet weights, for LPIPS; else torch's cache.")
    ] = "",
    compare: Annotated[str, typer.Option(help="A second checkpoint to compare with.")] = "",
    against: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=FOLDER",
            help="Pictures of another method, named as the images, to compare with; repeatable.",
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, or cuda: where images are restored.")] = "cpu",
    as_json: JsonFlag = False,
) -> None:
    """Score restored images, and for comparison the blurred ones, against the sharp ones."""

    def work() -> dict[str, Any]:
        with uncollected():
            from pipeline.evaluate import evaluate as score

        rivals = against or ()
        found = score(checkpoint, data, out, protocol, lpips_weights, compare, rivals, device)
        return found.summary

    run_verb(work, show_summary, as_json)
