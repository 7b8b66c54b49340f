"""The outermost layer of the command line: every outcome becomes an exit code and at most one line.

An error of this program, as opposed to one of its input, leaves a report file with the traceback
instead of printing it. Failures to write to standard output change the exit code; a closed standard
error does not.
"""

from __future__ import annotations

import errno
import logging
import os
import platform
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn, TextIO

from pipeline import __version__
from pipeline.errors import ENVIRONMENT, Stopped, UserError, masked, one_line, printable

EXIT_INTERNAL, EXIT_USER = 1, 2
EXIT_INTERRUPTED, EXIT_BROKEN_PIPE, EXIT_TERMINATED = 130, 141, 143
LONGEST_REASON = 300  # characters of an unexpected error's message


class Terminated(BaseException):
    """SIGTERM arrived; raised in the main thread so that every `finally` runs."""


def run_guarded(program: Callable[[], int]) -> NoReturn:
    """Run a whole command line and exit; no exception passes this point."""
    _prepare_streams()
    threading.excepthook = _thread_failed
    output = sys.stdout  # a verb puts standard error in its place
    try:
        code = program()
    except OSError as error:  # verbs guard their work: this came from printing
        code = output_failed(error)
    except SystemExit:  # raised by the parser when the reader has closed the pipe
        code = output_failed(BrokenPipeError(errno.EPIPE, ""))
    except BaseException as error:
        code = conclude(error)
    if code == 0:
        try:
            output.flush()
        except OSError as error:
            code = output_failed(error)
    _close_output(output)
    if code in (EXIT_INTERRUPTED, EXIT_TERMINATED) and _is_still_working():
        os._exit(code)  # whatever is written appears whole or not at all
    sys.exit(code)


def _is_still_working() -> bool:
    """Whether other non-daemon threads run: Python would wait for them, perhaps for minutes."""
    return any(
        not thread.daemon and thread is not threading.main_thread()
        for thread in threading.enumerate()
    )


def conclude(error: BaseException) -> int:
    """Print the one line that an exception deserves; returns the exit code."""
    if isinstance(error, UserError):
        return say(f"error: {error}", EXIT_USER)
    if isinstance(error, Stopped):
        code = EXIT_TERMINATED if str(error) == "SIGTERM" else EXIT_INTERRUPTED
        return say(f"stopped by {error}; the same command continues", code)
    if isinstance(error, KeyboardInterrupt):
        return say("interrupted", EXIT_INTERRUPTED)
    if isinstance(error, Terminated):
        return say("terminated", EXIT_TERMINATED)
    if isinstance(error, OSError) and error.errno in ENVIRONMENT:
        place = f"{_name(error.filename)[:LONGEST_REASON]}: " if error.filename else ""
        return say(f"error: {place}{os.strerror(error.errno).lower()}", EXIT_USER)
    if isinstance(error, ImportError) and "failed to map segment" in str(error):
        return say("error: out of memory (a library cannot be loaded)", EXIT_USER)
    return say(_describe_failure(error), EXIT_INTERNAL)


def say(message: str, code: int) -> int:
    """Print a line to standard error, which may be full or gone; returns the code."""
    with suppress(OSError, ValueError):
        print(one_line(message), file=sys.stderr, flush=True)
    return code


def _describe_failure(error: BaseException) -> str:
    """One line for an error of this program, after writing its report file."""
    if isinstance(error, MemoryError):
        reason = "out of memory"
    else:
        reason = f"internal error: {type(error).__name__}: {_message(error)}"[:LONGEST_REASON]
    report = write_report(error)
    return f"error: {reason} (please report it{f' with {report}' if report else ''})"


def write_report(error: BaseException) -> str:
    """Write a file that only this user can read, with the traceback and no secret.

    Returns:
        Its path; empty if no temporary folder can be written to.
    """
    try:
        trace = "".join(traceback.format_exception(error))
        lines = [
            f"era {__version__}, Python {platform.python_version()}, {platform.system()}",
            f"command: {' '.join(sys.argv[1:])}",
            "",
            trace,
        ]
        text = printable(masked("\n".join(lines)))
        descriptor, path = tempfile.mkstemp(prefix="era-report-", suffix=".txt")  # mode 0600
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(text)
        return path
    except Exception:  # a report that cannot be written must not hide what it is about
        return ""


def _name(filename: object) -> str:
    return os.fsdecode(filename) if isinstance(filename, str | bytes) else str(filename)


def _message(error: BaseException) -> str:
    try:
        return one_line(str(error))
    except Exception:
        return "(its message cannot be shown)"


def _prepare_streams() -> None:
    """Make the standard streams safe to use, however the process was started."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:  # closed: the next file to be opened would take its number
            # Writing to a closed standard output must still fail, hence read-only.
            flags = os.O_WRONLY if descriptor == 2 else os.O_RDONLY
            opened = os.open(os.devnull, flags)
            if opened != descriptor:
                os.dup2(opened, descriptor)
                os.close(opened)
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")  # file names need not be valid text
    logging.raiseExceptions = False  # a log that cannot be written prints no traceback


def output_failed(error: OSError) -> int:
    """Report in one line that standard output is full or gone; returns the exit code."""
    if error.errno == errno.EPIPE:
        return say("error: the reader closed standard output", EXIT_BROKEN_PIPE)
    reason = (error.strerror or str(error)).lower()
    return say(f"error: cannot write to standard output: {reason}", EXIT_USER)


def _close_output(output: TextIO) -> None:
    """Flush what can be flushed; otherwise Python would fail again at shutdown."""
    for stream, descriptor in ((output, 1), (sys.stderr, 2)):
        try:
            stream.flush()
        except (OSError, ValueError):
            with Path(os.devnull).open("wb") as nowhere:
                os.dup2(nowhere.fileno(), descriptor)


def _thread_failed(failure: threading.ExceptHookArgs) -> None:
    if failure.exc_value is not None and not isinstance(failure.exc_value, SystemExit):
        say(_describe_failure(failure.exc_value), EXIT_INTERNAL)
