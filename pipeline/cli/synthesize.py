"""`era synthesize`."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from pipeline.cli.common import JsonFlag, run_verb, show_summary
from pipeline.errors import UserError


def synthesize(
    dest: Annotated[str, typer.Option(help="Folder or URL to write to.")],
    photos: Annotated[
        str,
        typer.Option(
            help="`bundled` (scikit-image's), or a folder of sharp photographs, optionally divided "
            "into train/, val/ and test/."
        ),
    ] = "bundled",
    pairs: Annotated[int, typer.Option(help="Pairs in all splits together.")] = 60,
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.")] = 0,
    size: Annotated[str, typer.Option(help="WIDTHxHEIGHT in pixels.")] = "288x288",
    radius_max: Annotated[float, typer.Option(help="Greatest blur radius in pixels.")] = 7.0,
    mixed_psf: Annotated[
        bool, typer.Option("--mixed-psf", help="Several kinds of PSF in each picture.")
    ] = False,
    camera: Annotated[
        str,
        typer.Option(
            help="Effects of a camera, separated by commas, or `all`: highlights, outlines, "
            "aperture, resize, soft, exposure, shift, noise, tone, sharpening, jpeg."
        ),
    ] = "",
    as_json: JsonFlag = False,
) -> None:
    """Make defocus pairs with known blur from sharp photographs, laid out like DPDD."""

    def work() -> dict[str, object]:
        from pipeline.synthesize import synthesize as make

        return make(photos, dest, pairs, seed, _size(size), radius_max, mixed_psf, camera)

    run_verb(work, show_summary, as_json)


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([0-9]{1,5})x([0-9]{1,5})", text.lower())
    if not match:
        raise UserError(f"--size {text[:40]!r}: expected WIDTHxHEIGHT, such as 288x288")
    return int(match[1]), int(match[2])
