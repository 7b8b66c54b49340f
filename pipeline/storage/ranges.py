"""Several ranges of several files at once, over one connection pool per process."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextvars import copy_context
from functools import lru_cache, partial
from pathlib import Path

from pipeline.storage.local import explained

CONNECTIONS = 16  # ranges in transfer at once; with PART they bound the memory that is used
PART = 8 << 20  # bytes; each range is retried separately


@lru_cache(maxsize=1)
def _pool(pid: int) -> ThreadPoolExecutor:
    """Serves ranges in the order of the requests: the first file is complete first."""
    return ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="era-range")


def begin(read: Callable[[int, int], bytes], size: int, path: Path) -> Callable[[], str]:
    """Request all ranges of a file, after those requested earlier.

    Args:
        read: the bytes [start, end) of the source.
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
    parts = [pool.submit(copy_context().run, put, at, min(at + PART, size)) for at in starts]
    return partial(_hashed, parts, target, path)


def _put(read: Callable[[int, int], bytes], target: int, path: Path) -> Callable[[int, int], int]:
    def put(start: int, end: int) -> int:
        data = memoryview(read(start, end))
        with explained(path):
            while data:
                data = data[os.pwrite(target, data, end - len(data)) :]
        return end

    return put


def _hashed(parts: list[Future[int]], target: int, path: Path) -> str:
    """Hash the file's parts in order, each as soon as it is there."""
    digest, done = hashlib.sha256(), 0
    try:
        for part in parts:
            end = part.result()
            with explained(path):
                while done < end:
                    data = os.pread(target, min(1 << 20, end - done), done)
                    if not data:
                        raise OSError(errno.ESTALE, "shortened by another program")
                    digest.update(data)
                    done += len(data)
    finally:
        for part in parts:
            part.cancel()
        wait(parts)
        os.close(target)
    return digest.hexdigest()
