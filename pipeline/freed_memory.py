"""What becomes of the memory of freed tensors: kept for the next ones, or returned to the system.

By itself glibc returns blocks of more than 32 MB at once, and the kernel clears every page of the
next one: a fifth of the time of restoring 3 megapixels, a third of a training step with 8 crops of
256 pixels on a CPU. All of this is for the whole process, and does nothing with another C library.
"""

from __future__ import annotations

import contextlib
import ctypes

LIBC = "libc.so.6"
# Of malloc.h
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
MMAP_MAX = 65536  # glibc's own

_kept = False


def keep() -> None:
    """Keep it, if the large tensors are those of the main thread: glibc returns other threads'.

    Peaks grow by what is lost between tensors of different sizes.
    """
    global _kept
    _kept = True
    _mallopt({M_MMAP_MAX: 0, M_TRIM_THRESHOLD: -1})


def return_at_once() -> None:
    """Return blocks of more than 1 MB as soon as they are freed.

    By default those below 32 MB are kept: up to 2.4 times the memory per pixel of a small tile.
    Fresh pages take up to a third more CPU time.
    """
    global _kept
    _kept = False
    _mallopt({M_MMAP_MAX: MMAP_MAX, M_MMAP_THRESHOLD: 1 << 20, M_TRIM_THRESHOLD: 1 << 20})


def trim(even_if_kept: bool = False) -> None:
    """Return what has been freed so far, unless it is to be kept."""
    if even_if_kept or not _kept:
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(LIBC).malloc_trim(0)


def _mallopt(options: dict[int, int]) -> None:
    with contextlib.suppress(OSError, AttributeError):
        for option, value in options.items():
            ctypes.CDLL(LIBC).mallopt(option, value)
