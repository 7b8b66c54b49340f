"""What every verb shares: logging, the JSON line, exit codes."""

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

from pipeline.errors import Stopped, UserError

JsonFlag = Annotated[
    bool, typer.Option("--json", help="Print one JSON object as the last line of standard output.")
]
ConfigName = Annotated[
    str, typer.Option("--config", help="A path, or the name of a packaged configuration.")
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Configuration overrides.")
]

EXIT_USER, EXIT_INTERRUPTED, EXIT_TERMINATED = 2, 130, 143


class Terminated(BaseException):
    """SIGTERM arrived; raised in the main thread so that every `finally` runs."""


def run_verb(
    work: Callable[[], dict[str, Any]], show: Callable[[dict[str, Any]], None], as_json: bool
) -> None:
    """Run a verb's work, print its summary and leave with the right exit code.

    Args:
        work: does the verb and returns its JSON-able summary. A true `incomplete` entry means that
            bad inputs were set aside and the rest finished: exit code 2.
        show: prints the summary for people.
        as_json: print the summary as one JSON line instead.
    """
    signal.signal(signal.SIGTERM, _terminate)
    try:
        with redirect_stdout(sys.stderr):  # libraries print; standard output is for the summary
            summary = work()
    except UserError as error:
        _leave(f"error: {error}", EXIT_USER)
    except Stopped as stopped:
        code = EXIT_TERMINATED if str(stopped) == "SIGTERM" else EXIT_INTERRUPTED
        _leave(f"stopped by {stopped}; the same command goes on", code)
    except KeyboardInterrupt:
        _leave("interrupted", EXIT_INTERRUPTED)
    except Terminated:
        _leave("terminated", EXIT_TERMINATED)
    if as_json:
        print(json.dumps(summary), flush=True)
    else:
        show(summary)
    if summary.get("incomplete"):
        raise typer.Exit(EXIT_USER)


def show_summary(summary: dict[str, Any]) -> None:
    """Print a flat summary as aligned lines."""
    width = max((len(key) for key in summary), default=0)
    for key, value in summary.items():
        text = f"{value:.4f}" if isinstance(value, float) else value
        print(f"{key:<{width}}  {text}")


def set_up_logging() -> None:
    """Send the program's own lines to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    log = logging.getLogger("era")
    log.handlers[:] = [handler]
    log.setLevel(logging.INFO)
    log.propagate = False


def _terminate(signum: int, frame: FrameType | None) -> NoReturn:
    raise Terminated


def _leave(message: str, code: int) -> NoReturn:
    print(" ".join(message.split()), file=sys.stderr, flush=True)
    raise typer.Exit(code)
