"""Several ranges of several files at once, over one connection pool per process."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from contextvars import copy_context
from functools import lru_cache, partial
from pathlib import Path

from pipeline.errors import StorageDown
from pipeline.storage.local import explained

CONNECTIONS = 16  # ranges in transfer at once; with PART they bound the memory that is used
PART = 8 << 20  # bytes; each range is retried separately
PIECES = 512  # in one write; Linux takes 1024
_moving, _arriving = threading.Lock(), set[Path]()


@lru_cache(maxsize=1)
def _pool(pid: int) -> ThreadPoolExecutor:
    """Serves ranges in the order of the requests: the first file is complete first."""
    return ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="era-range")


Read = Callable[[int, int], list[bytes]]


def begin(read: Read, size: int, path: Path) -> Callable[[], str]:
    """Request all ranges of a file, after those requested earlier.

    Args:
        read: the bytes [start, end) of the source, in pieces of any size.
        size: bytes of the whole.
        path: an existing file, which they are written to.

    Returns:
        A function that must be called: it waits for the ranges and returns the file's sha256. It
        raises what `read` raised, once no transfer is running.
    """
    with explained(path):
        target = os.open(path, os.O_RDWR)
        os.ftruncate(target, size)
    starts = range(0, size, PART)
    pool, put = _pool(os.getpid()), _put(read, target, path)
    with _moving:
        _arriving.add(path)
    parts = [pool.submit(copy_context().run, put, at, min(at + PART, size)) for at in starts]
    return partial(_hashed, parts, target, path)


def _put(read: Read, target: int, path: Path) -> Callable[[int, int], int]:
    def put(start: int, end: int) -> int:
        pieces = [memoryview(piece) for piece in read(start, end)]
        with explained(path):
            while pieces:
                written = os.pwritev(target, pieces[:PIECES], start)
                start += written
                pieces = _after(pieces, written)
        _touch()
        return end

    return put


def _touch() -> None:
    """Mark every file that is on its way as alive: over a slow link the later ones wait long."""
    with _moving:
        for path in _arriving:
            with suppress(OSError):
                os.utime(path)


def _after(pieces: list[memoryview], written: int) -> list[memoryview]:
    """What remains of pieces after their first bytes."""
    for index, piece in enumerate(pieces):
        if written < len(piece):
            return [piece[written:], *pieces[index + 1 :]]
        written -= len(piece)
    return []


def _hashed(parts: list[Future[int]], target: int, path: Path) -> str:
    """Hash the file's parts in order, each as soon as it is there."""
    digest, done, buffer = hashlib.sha256(), 0, memoryview(bytearray(1 << 20))
    try:
        for part in parts:
            end = part.result()
            with explained(path):
                while done < end:
                    count = os.preadv(target, [buffer[: end - done]], done)
                    if not count:
                        raise StorageDown(f"{path}: shortened by another program")
                    digest.update(buffer[:count])
                    done += count
    finally:
        for part in parts:
            part.cancel()
        wait(parts)
        with _moving:
            _arriving.discard(path)
        os.close(target)
    return digest.hexdigest()
