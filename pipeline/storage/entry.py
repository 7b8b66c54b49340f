"""What a listing returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["file", "folder", "missing"]

UNFINISHED = ".era-part"  # suffix of files still being written; listings omit them


@dataclass(frozen=True)
class Version:
    """A file's size in bytes, and its entity tag; empty where a store has none."""

    size: int
    tag: str


@dataclass(frozen=True)
class Entry:
    """One file: its URL, its path relative to the folder searched, its size in bytes."""

    url: str
    relative: str
    size: int
