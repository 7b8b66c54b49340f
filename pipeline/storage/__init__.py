"""The single interface to files, local or in a bucket.

A URL is a string: a local path, ``s3://bucket/key``, and with their extras ``gs://bucket/key`` and
``az://container/key``. The endpoint and the credentials come from the environment or the standard
chain of the provider (``AWS_ENDPOINT_URL``, ``AWS_ACCESS_KEY_ID``, ...), never from an argument or
a file of this program. Other schemes that fsspec has a package for, such as ``hf://``, are
read-only.

Writes are atomic: a local file is written next to its destination, synced and renamed; in a bucket
it is one PUT or one completed multipart upload. Transient faults are retried for a bounded time; an
error that remains is a `UserError` of one line that names the URL and contains no credential.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from pipeline.border import MAX_JSON_BYTES, parse_json
from pipeline.errors import UserError
from pipeline.storage.entry import UNFINISHED, Entry, Kind, Version
from pipeline.storage.outage_retry import retry_outages
from pipeline.storage.recheck import checked_before_retries
from pipeline.storage.url import (
    absolute,
    check_url,
    is_local,
    join,
    local_path,
    name_of,
    parent,
    refuse_credentials,
)

__all__ = [
    "Entry",
    "Version",
    "absolute",
    "begin_download",
    "check_url",
    "check_writable",
    "checked_before_retries",
    "create",
    "delete",
    "download",
    "exists",
    "find",
    "folder_beside",
    "is_dir",
    "is_local",
    "join",
    "list_names",
    "local_path",
    "modified",
    "move_in",
    "name_of",
    "parent",
    "read_bytes",
    "read_json",
    "read_text",
    "refuse_credentials",
    "remove_unfinished",
    "retry_outages",
    "size",
    "upload",
    "version",
    "write_bytes",
    "write_json",
    "write_text",
]

MOST_BYTES = 4 << 30  # a larger file is not read into memory in one piece


class _Files(Protocol):
    def kind(self, url: str) -> Kind: ...
    def size(self, url: str) -> int: ...
    def modified(self, url: str) -> datetime: ...
    def version(self, url: str) -> Version | None: ...
    def list_names(self, url: str) -> list[str]: ...
    def find(self, url: str) -> list[Entry]: ...
    def read(self, url: str, start: int | None, end: int | None, most: int) -> bytes: ...
    def read_pieces(self, url: str, start: int, end: int) -> list[bytes]: ...
    def write(self, url: str, data: bytes) -> None: ...
    def create(self, url: str, data: bytes) -> bool: ...
    def write_from(self, path: Path, url: str) -> None: ...
    def delete(self, url: str) -> None: ...
    def remove_unfinished(self, url: str) -> None: ...
    def check_writable(self, url: str) -> None: ...


def exists(url: str) -> bool:
    """Whether a file or a folder exists."""
    return _files(url).kind(url) != "missing"


def is_dir(url: str) -> bool:
    """Whether a folder exists; on S3, whether any object is below it."""
    return _files(url).kind(url) == "folder"


def list_names(url: str) -> list[str]:
    """Sorted names of the immediate children; empty for a missing folder."""
    return _files(url).list_names(url)


def find(url: str) -> list[Entry]:
    """All files below a folder, at any depth, sorted by relative path."""
    return _files(url).find(url)


def size(url: str) -> int:
    """Bytes of a file."""
    return _files(url).size(url)


def modified(url: str) -> datetime:
    """When a file was written, UTC."""
    return _files(url).modified(url)


def version(url: str) -> Version | None:
    """What changes when a file is replaced, in one request; None if it is missing."""
    return _files(url).version(url)


def read_bytes(
    url: str, start: int | None = None, end: int | None = None, most: int = MOST_BYTES
) -> bytes:
    """Read a file, or its bytes [start, end).

    Args:
        most: size in bytes above which a whole file is refused instead of read.

    Raises:
        UserError: also when the file ends before `end`, and for what is not a regular file.
    """
    return _files(url).read(url, start, end, most)


def read_text(url: str) -> str:
    """Read a UTF-8 file."""
    try:
        return read_bytes(url).decode("utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{url}: not a text file in UTF-8") from None


def read_json(url: str) -> Any:
    """Read a JSON file: strict JSON of bounded size, see `pipeline.border.parse_json`."""
    return parse_json(read_bytes(url, most=MAX_JSON_BYTES), url)


def write_bytes(url: str, data: bytes) -> None:
    """Write a file atomically; missing folders are created."""
    _files(url).write(url, data)


def create(url: str, data: bytes) -> bool:
    """Write a file only where there is none; returns whether it was written.

    Atomic where the store has conditional writes. A store that ignores the condition replaces the
    file and returns True: where that matters, read it back.
    """
    return _files(url).create(url, data)


def write_text(url: str, text: str) -> None:
    """Write a UTF-8 file atomically; bytes of names that are no text are written as escapes."""
    write_bytes(url, text.encode("utf-8", "backslashreplace"))


def write_json(url: str, value: Any) -> None:
    """Write a JSON file atomically, one item per line, keys in the order given."""
    write_text(url, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def upload(path: str | Path, url: str) -> None:
    """Copy a local file to a URL in parts; it appears atomically."""
    _files(url).write_from(Path(path), url)


def download(url: str, path: str | Path) -> None:
    """Copy a file to a local path, several ranges at once; it appears atomically."""
    target = Path(path)
    if is_local(url):
        _files(str(target)).write_from(local_path(url), str(target))
        return
    from pipeline.storage.local import written_beside

    total = size(url)
    with written_beside(target) as stream:
        begin_download(url, total, Path(stream.name))()


def begin_download(url: str, size: int, path: Path) -> Callable[[], str]:
    """Begin to fill an existing local file with a remote one of `size` bytes.

    Files complete in the order in which they were begun. The returned function must be called: it
    waits for the end of the download and returns the sha256 of the file.
    """
    from pipeline.storage.ranges import begin

    return begin(lambda start, end: _files(url).read_pieces(url, start, end), size, path)


def delete(url: str) -> None:
    """Remove a file, or a folder and everything below it; a missing one is not an error."""
    _files(url).delete(url)


def remove_unfinished(url: str) -> None:
    """Remove the temporary files of killed writers from a folder that no process is writing to."""
    _files(url).remove_unfinished(url)


def check_writable(url: str) -> None:
    """Raise a `UserError` unless files can be written below this folder; leaves no file."""
    _files(url).check_writable(url)


@contextmanager
def folder_beside(url: str) -> Iterator[Path]:
    """A temporary local folder for files that `move_in` puts below `url`; inside `url` if local."""
    if not is_local(url):
        with scratch_folder() as name:
            yield Path(name)
        return
    from pipeline.storage.local import explained

    target = local_path(url)
    with explained(target):
        target.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(prefix=".", suffix=UNFINISHED, dir=target)
    with folder as name, explained(target):
        yield Path(name)


def move_in(path: Path, url: str) -> None:
    """Move a finished local file to a URL: renamed on one file system, else copied."""
    if is_local(url) and path.parent.parent == local_path(url).parent:
        from pipeline.storage.local import explained

        with explained(local_path(url)):
            path.replace(local_path(url))
        return
    upload(path, url)


def scratch_folder() -> tempfile.TemporaryDirectory[str]:
    """A temporary local folder for files that are uploaded later."""
    return tempfile.TemporaryDirectory(prefix="era-")


def _files(url: str) -> _Files:
    check_url(url)
    if is_local(url):
        from pipeline.storage.local import LocalFiles

        return LocalFiles()
    if not url.startswith("s3://"):
        from pipeline.storage.clouds import cloud_files

        return cloud_files(url.partition("://")[0])
    from pipeline.storage.bucket import bucket_files

    return bucket_files()
