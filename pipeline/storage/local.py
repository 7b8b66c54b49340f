"""Files on this machine."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from pipeline.errors import StorageDown, UserError
from pipeline.storage.entry import UNFINISHED, Entry, Kind, Version
from pipeline.storage.url import local_path

COPY_PART = 8 << 20  # bytes

_CURES = {
    errno.ENOENT: "no such file or folder; check the path",
    errno.EACCES: "permission denied; check the owner and the mode",
    errno.EPERM: "operation not permitted; choose another place",
    errno.EROFS: "the file system is read-only; choose another place",
    errno.ENOSPC: "the disk is full; free some space or choose another place",
    errno.EDQUOT: "the disk quota is used up; free some space or choose another place",
    errno.EFBIG: "the file grows beyond the size that is allowed here; choose another place",
    errno.ENOTDIR: "a part of the path is a file, not a folder; choose another path",
    errno.EEXIST: "a part of the path is a file, not a folder; choose another path",
    errno.EISDIR: "this is a folder, and a file is wanted",
    errno.ENAMETOOLONG: "the name is too long",
    errno.ELOOP: "too many symbolic links",
}


# What clients of a network file system say while its server is away or has just come back.
_PASSING = {
    getattr(errno, name, errno.ESTALE)  # not all systems have all
    for name in ("ESTALE", "ETIMEDOUT", "EREMOTEIO", "EHOSTDOWN", "EHOSTUNREACH", "ENOTCONN")
}


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn an OSError into a UserError that names the path and a remedy."""
    try:
        yield
    except OSError as error:
        if error.errno in _PASSING:
            reason = f"{error.strerror}; its file server is away, or another client has replaced it"
            raise StorageDown(f"{path}: {reason}") from None
        reason = _CURES.get(error.errno or 0, error.strerror or type(error).__name__)
        raise UserError(f"{path}: {reason}") from None
    except MemoryError:
        raise UserError(f"{path}: does not fit into memory") from None


def _unless_gone(error: OSError) -> None:
    """A folder that cannot be listed is not an empty one."""
    gone = FileNotFoundError, NotADirectoryError
    if not isinstance(error, gone) and error.errno != errno.ESTALE:
        with explained(Path(error.filename)):
            raise error


@contextmanager
def written_beside(path: Path) -> Iterator[IO[bytes]]:
    """Open a file next to `path`; on success sync and rename it to `path`, else remove it."""
    beside = _beside(path)
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = beside.open("wb")
    try:
        yield stream
        with explained(path):
            stream.flush()
            os.fsync(stream.fileno())
            stream.close()
            beside.replace(path)
            _sync_folder(path.parent)
    finally:
        with suppress(OSError):  # it would write what is left, and fail again
            stream.close()
        beside.unlink(missing_ok=True)


def allocate(path: Path, size: int) -> None:
    """Create a file of this size that has no content yet."""
    with explained(path), path.open("xb") as stream:
        stream.truncate(size)


def write_all(stream: IO[bytes], data: bytes, path: Path) -> None:
    """Write to an open stream; a failure names the final path."""
    with explained(path):
        stream.write(data)


class LocalFiles:
    """Storage operations on local files."""

    def kind(self, url: str) -> Kind:
        path = local_path(url)
        with explained(path):
            if path.is_dir():
                return "folder"
            return "file" if path.exists() else "missing"

    def size(self, url: str) -> int:
        with explained(local_path(url)):
            return local_path(url).stat().st_size

    def modified(self, url: str) -> datetime:
        with explained(local_path(url)):
            return datetime.fromtimestamp(local_path(url).stat().st_mtime, UTC)

    def version(self, url: str) -> Version | None:
        with explained(local_path(url)):
            try:
                found = local_path(url).stat()
            except FileNotFoundError:
                return None
            return Version(found.st_size, f"{found.st_ino}-{found.st_mtime_ns}")

    def list_names(self, url: str) -> list[str]:
        path = local_path(url)
        with explained(path):
            if not path.is_dir():
                return []
            return sorted(x.name for x in path.iterdir() if not x.name.endswith(UNFINISHED))

    def find(self, url: str) -> list[Entry]:
        root = local_path(url)
        found = []
        with explained(root):
            for folder, below, names in os.walk(root, onerror=_unless_gone):
                below[:] = [name for name in below if not name.endswith(UNFINISHED)]
                for name in names:
                    path = Path(folder, name)
                    if name.endswith(UNFINISHED):
                        continue
                    with suppress(FileNotFoundError):  # removed just now
                        relative = path.relative_to(root).as_posix()
                        found.append(Entry(str(path), relative, path.stat().st_size))
        return sorted(found, key=lambda entry: entry.relative)

    def read(self, url: str, start: int | None, end: int | None, most: int) -> bytes:
        path = local_path(url)
        with explained(path):
            size = require_file(path)
            if start is None and end is None and size > most:
                raise UserError(f"{path}: {size} bytes; at most {most} are read")
            with path.open("rb") as stream:
                stream.seek(start or 0)
                data = stream.read() if end is None else stream.read(end - (start or 0))
        if end is not None and len(data) != end - (start or 0):
            raise UserError(f"{path}: ends before byte {end}; the file is cut short")
        return data

    def read_pieces(self, url: str, start: int, end: int) -> list[bytes]:
        return [self.read(url, start, end, end)]

    def write(self, url: str, data: bytes) -> None:
        path = local_path(url)
        with written_beside(path) as stream:
            write_all(stream, data, path)

    def create(self, url: str, data: bytes) -> bool:
        path = local_path(url)
        with explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            beside = _beside(path)
            try:
                with beside.open("xb") as stream:
                    write_all(stream, data, path)
                    stream.flush()
                    os.fsync(stream.fileno())
                created = _link(beside, path)
            finally:
                beside.unlink(missing_ok=True)
            _sync_folder(path.parent)
        return created

    def write_from(self, path: Path, url: str) -> None:
        target = local_path(url)
        with explained(path):
            require_file(path)
            source = path.open("rb")
        with source, written_beside(target) as stream:
            while data := source.read(COPY_PART):
                write_all(stream, data, target)

    def delete(self, url: str) -> None:
        path = local_path(url)
        with explained(path):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def remove_unfinished(self, url: str) -> None:
        path = local_path(url)
        with explained(path):
            for left in path.glob(f".*{UNFINISHED}"):
                self.delete(str(left))

    def check_writable(self, url: str) -> None:
        path = local_path(url)
        with explained(path):
            nearest = path.absolute()
            while not nearest.exists():
                nearest = nearest.parent
            if not nearest.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, "not a folder")
            probe = nearest / f".era-{secrets.token_hex(4)}{UNFINISHED}"
            try:
                probe.write_bytes(b"era")
            finally:
                probe.unlink(missing_ok=True)


def _beside(path: Path) -> Path:
    """A name for a file that is not whole yet."""
    return path.with_name(f".{path.name[:200]}.{secrets.token_hex(4)}{UNFINISHED}")


def _link(source: Path, path: Path) -> bool:
    """Give a whole file its name; False where something has that name."""
    try:
        os.link(source, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
            raise
        if path.exists():  # no hard links here: two at the same time are not told apart
            return False
        source.replace(path)
    return True


def require_file(path: Path) -> int:
    """The size in bytes of a regular file, looked up before the file is opened.

    Opening a FIFO blocks, and a device may be endless.

    Raises:
        OSError, UserError: if it is missing, or is something else.
    """
    found = path.stat()
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, "a folder")
    if not stat.S_ISREG(found.st_mode):
        raise UserError(f"{path}: not a regular file but a FIFO, socket or device")
    return found.st_size


def _sync_folder(folder: Path) -> None:
    """Make a rename durable; file systems that cannot sync a folder are accepted."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
