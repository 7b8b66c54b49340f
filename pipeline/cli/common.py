"""Shared by all verbs: logging, the JSON line, exit codes."""

from __future__ import annotations

import json
import logging
import signal
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer

from pipeline.cli.edge import EXIT_USER, Terminated, conclude, output_failed
from pipeline.errors import SafeFormatter, finite, printable, publishable

JsonFlag = Annotated[
    bool, typer.Option("--json", help="Print one JSON object as the last line of standard output.")
]
ConfigName = Annotated[
    str, typer.Option("--config", help="A path, or the name of a packaged configuration.")
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Configuration overrides.")
]


def run_verb(
    work: Callable[[], dict[str, Any]], show: Callable[[dict[str, Any]], None], as_json: bool
) -> None:
    """Run a verb's work, print its summary and leave with the right exit code.

    Args:
        work: does the verb and returns its JSON-able summary. A true `incomplete` entry means that
            bad inputs were set aside and the rest finished: exit code 2.
        show: prints the summary for people.
        as_json: print the summary as one JSON line instead; numbers that are not finite, which
            JSON does not have, become null.
    """
    signal.signal(signal.SIGTERM, _terminate)
    # To the end of the process: libraries print, from threads too; this is for the summary alone.
    output, sys.stdout = sys.stdout, sys.stderr
    try:
        summary = publishable(work())
    except BaseException as error:
        raise typer.Exit(conclude(error)) from None
    try:
        if as_json:
            print(json.dumps(finite(summary), allow_nan=False), file=output, flush=True)
        else:
            with redirect_stdout(output):
                show(summary)
            output.flush()
    except OSError as error:
        sys.stdout = output
        raise typer.Exit(output_failed(error)) from None
    if summary.get("incomplete"):
        raise typer.Exit(EXIT_USER)


def show_summary(summary: dict[str, Any]) -> None:
    """Print a flat summary as aligned lines."""
    width = max((len(key) for key in summary), default=0)
    for key, value in summary.items():
        text = f"{value:.4f}" if isinstance(value, float) else printable(str(value))
        print(f"{printable(str(key)):<{width}}  {text}")


def show_with_metrics(summary: dict[str, Any]) -> None:
    """Print a summary and the metrics in it as one list."""
    metrics = summary.pop("metrics")
    show_summary({**summary, **metrics})


def set_up_logging() -> None:
    """Send the program's own lines, and the warnings of libraries, to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(SafeFormatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    logging.lastResort = logging.StreamHandler(sys.stderr)  # for loggers without a handler
    logging.lastResort.setLevel(logging.WARNING)
    logging.lastResort.setFormatter(handler.formatter)
    log = logging.getLogger("era")
    log.handlers[:] = [handler]
    log.setLevel(logging.INFO)
    log.propagate = False
    # It logs a line for each damaged directory of a file; what counts is said by us.
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)


def _terminate(signum: int, frame: FrameType | None) -> NoReturn:
    raise Terminated
