"""The `era` command: parses arguments, prints results, sets exit codes.

Each verb has its own module and imports its implementation lazily, so that `era --help` is fast and
a verb loads only what it uses.
"""

from __future__ import annotations

from typing import Any, NoReturn

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
from pipeline.cli.edge import EXIT_USER, run_guarded, say

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
    demo.demo,
    synthesize.synthesize,
    preprocess.preprocess,
    verify.verify,
    train.train,
    tune.tune,
    evaluate.evaluate,
    restore.restore,
):
    app.command()(verb)
submit.register(app)
app.command()(doctor.doctor)
runs.register(app)


def main() -> NoReturn:
    """Run the command line; wrong usage ends in one line, as every wrong input does."""
    run_guarded(_run)


def _run() -> int:
    try:
        return int(app(standalone_mode=False) or 0)
    except Exception as error:
        if type(error).__name__ == "Abort":  # the parser's word for an interruption
            raise KeyboardInterrupt from None
        if not hasattr(error, "format_message"):  # only the parser's errors have it
            raise
        line = _usage_line(error)
        return say(line, EXIT_USER) if line else EXIT_USER


def _usage_line(error: Any) -> str:
    command = error.ctx.command_path if getattr(error, "ctx", None) else "era"
    message = str(error.format_message())
    return f"error: {message} (see {command} --help)" if message else ""  # the help was shown
