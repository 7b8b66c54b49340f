"""The `era` command: parses, prints, sets exit codes; nothing else.

Each verb is registered by its own file. Verbs import their rooms lazily, so that `era --help` is
quick and a verb needs only what it uses.
"""

from __future__ import annotations

import sys
from typing import Any

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
from pipeline.cli.common import EXIT_USER, set_up_logging

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
    """Run the command line; wrong usage ends in one line, as every wrong input does."""
    try:
        code = app(standalone_mode=False)
    except Exception as error:
        if not hasattr(error, "format_message"):  # only the parser's errors have it
            raise
        print(_usage_line(error), end="", file=sys.stderr)
        sys.exit(EXIT_USER)
    sys.exit(code)


def _usage_line(error: Any) -> str:
    command = error.ctx.command_path if getattr(error, "ctx", None) else "era"
    message = " ".join(str(error.format_message()).split())
    return f"error: {message} (see {command} --help)\n" if message else ""  # the help was shown
