"""The `era` command: parses, prints, sets exit codes; nothing else.

Each verb is registered by its own file. Verbs import their rooms lazily, so that `era --help` is
quick and a verb needs only what it uses.
"""

from __future__ import annotations

import typer

from pipeline.cli import (
    demo,
    doctor,
    evaluate,
    preprocess,
    restore,
    runs,
    submit,
    synthesize,
    train,
    tune,
    verify,
)
from pipeline.cli.common import set_up_logging

app = typer.Typer(
    name="era",
    help="Train and use ErA, the error-aware unrolling network for defocus deblurring.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _main() -> None:
    set_up_logging()


for verb in (
    demo,
    synthesize,
    preprocess,
    verify,
    train,
    tune,
    evaluate,
    restore,
    runs,
    submit,
    doctor,
):
    verb.register(app)


def main() -> None:
    """Run the command line."""
    app()
