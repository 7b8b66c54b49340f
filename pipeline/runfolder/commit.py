"""COMMIT, the file that makes a checkpoint whole: what it says, and whether that can be true."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from typing import Any

from pipeline import storage
from pipeline.border import BadInput, parse_json
from pipeline.errors import DamagedError, UserError
from pipeline.runfolder.lines import is_number, numbers
from pipeline.runfolder.names import COMMIT

FORMAT = "era-checkpoint/1"
LIMIT = 4 << 20  # bytes of COMMIT or meta.json; real ones have some kilobytes
MOST_STEPS = 10**15
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,120}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
Print = dict[str, Any]  # `bytes` and `sha256` of a file


@dataclass(frozen=True)
class Commit:
    """Content of COMMIT.

    Attributes:
        step: optimiser steps done.
        metrics: finite values of the validation at this step; empty where there was none.
        files: bytes and sha256 of every file of the checkpoint.
        attempt: the attempt that wrote it; empty in checkpoints of earlier versions.
    """

    step: int
    metrics: dict[str, float] = field(default_factory=dict)
    files: dict[str, Print] = field(default_factory=dict)
    attempt: str = ""


def fingerprint(data: bytes) -> Print:
    """What COMMIT says of a file: its bytes and sha256."""
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def write_commit(
    url: str, step: int, metrics: dict[str, float], files: dict[str, Print], attempt: str = ""
) -> None:
    """Write COMMIT into a checkpoint's folder: from now on it counts as whole."""
    author = {"attempt": attempt} if attempt else {}
    commit = {"format": FORMAT, "step": step, **author, "metrics": numbers(metrics), "files": files}
    storage.write_json(storage.join(url, COMMIT), commit)


def read_commit(url: str) -> Commit:
    """Read the COMMIT of a checkpoint's folder.

    Raises:
        DamagedError: if there is none, or it is not sound. UserError: if it is of another version,
            or cannot be read now.
    """
    place = storage.join(url, COMMIT)
    if not storage.exists(place):
        raise DamagedError(f"{url}: not a checkpoint, or an unfinished one (it has no COMMIT)")
    try:
        return _checked(place, read_object(place))
    except UserError:
        if storage.exists(place):
            raise
        raise DamagedError(f"{url}: has just been removed") from None


def read_object(url: str) -> dict[str, Any]:
    """Read a small JSON file that holds an object.

    Raises:
        DamagedError: if it is too large, not JSON, or another kind of value.
    """
    if storage.size(url) > LIMIT:
        raise DamagedError(f"{url}: damaged (larger than {LIMIT} bytes)")
    return parse_object(url, storage.read_bytes(url))


def parse_object(url: str, data: bytes) -> dict[str, Any]:
    """The object of a JSON text; the constants NaN and Infinity become None."""
    try:
        value = parse_json(data, url, LIMIT, nan_is_null=True)
    except BadInput:
        value = None
    if not isinstance(value, dict):
        raise DamagedError(f"{url}: damaged (not the JSON that it should be)")
    return value


def _checked(url: str, found: dict[str, Any]) -> Commit:
    if isinstance(found.get("format"), str) and found["format"] != FORMAT:
        raise UserError(f"{url}: format {found['format'][:40]}, this program reads {FORMAT}")
    step, metrics, files = (found.get(key) for key in ("step", "metrics", "files"))
    sound = (
        found.get("format") == FORMAT
        and is_count(step)
        and isinstance(metrics, dict)
        and all(value is None or is_number(value) for value in metrics.values())
        and isinstance(files, dict)
        and all(_is_print(name, entry) for name, entry in files.items())
        and isinstance(found.get("attempt", ""), str)
    )
    if not sound:
        raise DamagedError(f"{url}: damaged (not the JSON that it should be)")
    floats = {name: float(value) for name, value in numbers(metrics or {}).items()}
    return Commit(int(step or 0), floats, files or {}, found.get("attempt", "")[:80])


def is_count(value: Any) -> bool:
    """Whether a JSON value can be a number of steps."""
    return type(value) is int and 0 <= value < MOST_STEPS


def _is_print(name: str, entry: Any) -> bool:
    return (
        bool(_PLAIN_NAME.fullmatch(name))
        and isinstance(entry, dict)
        and is_count(entry.get("bytes"))
        and bool(_SHA256.fullmatch(str(entry.get("sha256"))))
    )
