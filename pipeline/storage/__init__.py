"""The one door to files, local or on S3.

A URL is a string: a local path, or ``s3://bucket/key``. The endpoint and the credentials of S3 come
from the environment or the standard AWS chain (``AWS_ENDPOINT_URL``, ``AWS_ACCESS_KEY_ID``, ...),
never from an argument or a file of ours.

Whatever is written appears whole or not at all: locally beside its place, synced and renamed; on
S3 by one PUT or one completed multipart upload. Transient faults are retried for a bounded time;
what remains is a `UserError` of one line that names the URL and holds no credential.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from pipeline.errors import UserError
from pipeline.storage.entry import UNFINISHED, Entry, Kind
from pipeline.storage.outage_retry import retry_outages
from pipeline.storage.recheck import checked_before_retries

__all__ = [
    "Entry",
    "absolute",
    "check_writable",
    "checked_before_retries",
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
    "read_bytes",
    "read_json",
    "read_text",
    "remove_unfinished",
    "retry_outages",
    "size",
    "upload",
    "write_bytes",
    "write_json",
    "write_text",
]

DOWNLOAD_PART = 32 << 20  # bytes; each part is retried by itself


class _Files(Protocol):
    def kind(self, url: str) -> Kind: ...
    def size(self, url: str) -> int: ...
    def modified(self, url: str) -> datetime: ...
    def list_names(self, url: str) -> list[str]: ...
    def find(self, url: str) -> list[Entry]: ...
    def read(self, url: str, start: int | None, end: int | None) -> bytes: ...
    def write(self, url: str, data: bytes) -> None: ...
    def write_from(self, path: Path, url: str) -> None: ...
    def delete(self, url: str) -> None: ...
    def remove_unfinished(self, url: str) -> None: ...
    def check_writable(self, url: str) -> None: ...


def is_local(url: str) -> bool:
    """Whether the URL is a path of this machine."""
    return "://" not in url or url.startswith("file://")


def local_path(url: str) -> Path:
    """The path that a local URL names.

    Raises:
        UserError: for an empty URL, which would mean the current folder.
    """
    _refuse_empty(url)
    return Path(url.removeprefix("file://")).expanduser()


def absolute(url: str) -> str:
    """The URL as other processes can use it: local paths made absolute, no trailing slash."""
    return str(local_path(url).absolute()) if is_local(url) else url.rstrip("/")


def join(url: str, *parts: str) -> str:
    """Put names below a URL: ``join("s3://b/a/", "c", "d.png") == "s3://b/a/c/d.png"``."""
    return "/".join([url.rstrip("/"), *(part.strip("/") for part in parts)])


def name_of(url: str) -> str:
    """The last name of a URL: ``name_of("s3://b/a/c.png") == "c.png"``."""
    return url.rstrip("/").rpartition("/")[2]


def exists(url: str) -> bool:
    """Whether a file or a folder is there."""
    return _files(url).kind(url) != "missing"


def is_dir(url: str) -> bool:
    """Whether a folder is there; on S3, whether any key lies below."""
    return _files(url).kind(url) == "folder"


def list_names(url: str) -> list[str]:
    """Sorted names of the immediate children; none for a missing folder."""
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


def read_bytes(url: str, start: int | None = None, end: int | None = None) -> bytes:
    """Read a file, or its bytes [start, end).

    Raises:
        UserError: also when the file ends before `end`.
    """
    return _files(url).read(url, start, end)


def read_text(url: str) -> str:
    """Read a UTF-8 file."""
    try:
        return read_bytes(url).decode("utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{url}: not a text file in UTF-8") from None


def read_json(url: str) -> Any:
    """Read a JSON file."""
    try:
        return json.loads(read_text(url))
    except json.JSONDecodeError as error:
        raise UserError(f"{url}: not valid JSON ({error.msg} at line {error.lineno})") from None


def write_bytes(url: str, data: bytes) -> None:
    """Write a file whole; folders are made."""
    _files(url).write(url, data)


def write_text(url: str, text: str) -> None:
    """Write a UTF-8 file whole."""
    write_bytes(url, text.encode("utf-8"))


def write_json(url: str, value: Any) -> None:
    """Write a JSON file whole, with a line per item, keys in the order given."""
    write_text(url, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def upload(path: str | Path, url: str) -> None:
    """Copy a local file to a URL, in pieces, so that it appears whole."""
    _files(url).write_from(Path(path), url)


def download(url: str, path: str | Path) -> None:
    """Copy a file to a local path, in pieces, so that it appears whole."""
    target = Path(path)
    if is_local(url):
        _files(str(target)).write_from(local_path(url), str(target))
        return
    from pipeline.storage import local

    total = size(url)
    with local.written_beside(target) as stream:
        for start in range(0, total, DOWNLOAD_PART):
            part = read_bytes(url, start, min(start + DOWNLOAD_PART, total))
            local.write_all(stream, part, target)


def delete(url: str) -> None:
    """Remove a file, or a folder with all below; a missing one is no error."""
    _files(url).delete(url)


def remove_unfinished(url: str) -> None:
    """Remove what killed writers left directly in a folder; nobody may be writing there now."""
    _files(url).remove_unfinished(url)


def check_writable(url: str) -> None:
    """Raise a `UserError` unless files can be written below this folder; leaves nothing there."""
    _files(url).check_writable(url)


@contextmanager
def folder_beside(url: str) -> Iterator[Path]:
    """A local folder for files that `move_in` will put below `url`: beside it where it is local."""
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
    """Put a finished local file at a URL: renamed where both are on one disk, else copied."""
    if is_local(url) and path.parent.parent == local_path(url).parent:
        from pipeline.storage.local import explained

        with explained(local_path(url)):
            path.replace(local_path(url))
        return
    upload(path, url)


def scratch_folder() -> tempfile.TemporaryDirectory[str]:
    """A temporary local folder, for what is built before an upload."""
    return tempfile.TemporaryDirectory(prefix="era-")


def _files(url: str) -> _Files:
    _refuse_empty(url)
    if is_local(url):
        from pipeline.storage.local import LocalFiles

        return LocalFiles()
    if url.startswith("s3://"):
        from pipeline.storage.bucket import bucket_files

        return bucket_files()
    scheme = url.partition("://")[0]
    raise UserError(f"{url}: {scheme}:// is not supported; use a local path or s3://bucket/key")


def _refuse_empty(url: str) -> None:
    if not url.removeprefix("file://").strip():
        raise UserError("an empty URL: give a local path or s3://bucket/key")
