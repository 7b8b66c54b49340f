"""Work over many items: on a Ray cluster where there is one, else in threads of this process.

The work itself (decoding, hashing, copying, convolutions) leaves Python's lock, so that threads
use every core.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any, TypeVar

from pipeline.errors import UserError

T = TypeVar("T")
R = TypeVar("R")
AHEAD = 2  # tasks per processor that a cluster holds at once


def parallel_map(
    work: Callable[[T], R], items: Sequence[T], workers: int = 0
) -> Iterator[tuple[int, R]]:
    """Do `work` on every item, several at once; yield (index, result) as they come.

    Args:
        work: a function that can be pickled, of one item; may be run again after a lost node.
        workers: threads where there is no cluster; 0 = one per processor.

    Raises:
        UserError: the first one that `work` raised.
    """
    return _on_ray(work, items) if has_cluster() else _in_threads(work, items, workers)


def has_cluster() -> bool:
    """Whether RAY_ADDRESS names a cluster, or this process has joined one."""
    if os.environ.get("RAY_ADDRESS"):
        return True
    import sys

    ray = sys.modules.get("ray")  # a process that never imported Ray has joined nothing
    return ray is not None and bool(ray.is_initialized())


def join_cluster() -> None:
    """Join the cluster that RAY_ADDRESS names, once.

    Raises:
        UserError: if it does not answer, or runs another Ray or Python.
    """
    import ray

    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        address, reason = os.environ.get("RAY_ADDRESS", ""), " ".join(str(error).split())
        if "Version mismatch" in reason:
            raise UserError(f"RAY_ADDRESS={address}: {reason} Use the cluster's image") from None
        raise UserError(f"RAY_ADDRESS={address}: no Ray cluster answers there ({reason})") from None


def _in_threads(
    work: Callable[[T], R], items: Sequence[T], workers: int
) -> Iterator[tuple[int, R]]:
    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        futures = {pool.submit(work, item): index for index, item in enumerate(items)}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _on_ray(work: Callable[[T], R], items: Sequence[T]) -> Iterator[tuple[int, R]]:
    import ray

    join_cluster()
    remote = ray.remote(_attempt).options(num_cpus=1, max_retries=5)
    limit = max(1, int(ray.cluster_resources().get("CPU", 1))) * AHEAD
    waiting, running = list(enumerate(items)), dict[Any, int]()
    waiting.reverse()
    while waiting or running:
        while waiting and len(running) < limit:
            index, item = waiting.pop()
            running[remote.remote(work, item)] = index
        ready, _ = ray.wait(list(running), num_returns=1)
        result, problem = ray.get(ready[0])
        if problem:
            for other in running:
                ray.cancel(other)
            raise UserError(problem)
        yield running.pop(ready[0]), result


def _attempt(work: Callable[[Any], Any], item: Any) -> tuple[Any, str]:
    """The user's errors come back as values: Ray would wrap them in a traceback."""
    try:
        return work(item), ""
    except UserError as error:
        return None, str(error)
