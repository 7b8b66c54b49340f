"""Work over many items: on a Ray cluster where there is one, else in threads of this process.

The work itself (decoding, hashing, copying, convolutions) releases the GIL, so that threads use
every core.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed, wait
from contextlib import suppress
from typing import Any, TypeVar

from pipeline.cluster import Wait, has_cluster, join, require_gpus, wait_for
from pipeline.errors import UserError
from pipeline.machine import processors

T = TypeVar("T")
R = TypeVar("R")
AHEAD = 2  # tasks per processor that a cluster holds at once
ENDING_SECONDS = 60.0  # for tasks that the cluster holds when another one has failed
GRACE_SECONDS = 5.0  # for items that are being worked on when the user interrupts
LONGEST_SECONDS = 3600.0  # without one item done, after which the cluster counts as stuck
SPARE = 1  # threads beside those of the processors, since some wait for the disk

_here = threading.local()  # of a thread of `parallel_map`: `idle` counts what it has to spare


def parallel_map(
    work: Callable[[T], R], items: Sequence[T], workers: int = 0, gpus: int = 0
) -> Iterator[tuple[int, R]]:
    """Apply `work` to every item, several at a time; yield (index, result) as they finish.

    Args:
        work: a function of one item that can be pickled; it may run again after a node was lost.
        workers: threads where there is no cluster; 0 means one per processor, 1 this one.
        gpus: that an item takes of the cluster, beside a processor.

    Raises:
        UserError: the first one that `work` raised, or where the cluster makes no progress.
    """
    return _on_ray(work, items, gpus) if has_cluster() else _in_threads(work, items, workers)


def _in_threads(
    work: Callable[[T], R], items: Sequence[T], workers: int
) -> Iterator[tuple[int, R]]:
    if workers == 1:  # see `pipeline.freed_memory.keep`
        for index, item in enumerate(items):
            yield index, work(item)
        return
    count = workers or processors()
    idle = threading.Semaphore(SPARE + max(0, count - len(items)))
    done = itertools.count(1)

    def ended(_: Future[R]) -> None:
        if next(done) > len(items) - count:  # fewer items than threads are left
            idle.release()

    pool = ThreadPoolExecutor(count, initializer=lambda: setattr(_here, "idle", idle))
    futures = {pool.submit(work, item): index for index, item in enumerate(items)}
    for future in futures:
        future.add_done_callback(ended)
    try:
        for future in as_completed(futures):
            yield futures[future], future.result()
    except (Exception, GeneratorExit):
        pool.shutdown(wait=True, cancel_futures=True)
        raise
    except BaseException:  # an interruption: one item may take many minutes more
        pool.shutdown(wait=False, cancel_futures=True)
        wait([future for future in futures if future.running()], GRACE_SECONDS)
        raise
    pool.shutdown()


def in_order(work: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
    """Apply `work` to every item, in order; one at a time, and ahead of time with threads that the
    `parallel_map` around it has to spare.

    Args:
        work: a function of one item; what it raises ends the iteration.
    """
    idle = getattr(_here, "idle", threading.Semaphore(0))
    ahead, more = deque[Future[R]](), 0
    with ThreadPoolExecutor(max(1, len(items))) as pool:  # a thread begins when there is work
        try:
            for item in items:
                ahead.append(pool.submit(work, item))
                while idle.acquire(blocking=False):
                    more += 1
                if len(ahead) > more:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            if more:
                idle.release(more)


def _on_ray(work: Callable[[T], R], items: Sequence[T], gpus: int) -> Iterator[tuple[int, R]]:
    import ray

    join()
    require_gpus(gpus)
    remote = ray.remote(_attempt).options(num_cpus=1, num_gpus=gpus, max_retries=5)
    limit = max(1, int(ray.cluster_resources().get("CPU", 1))) * AHEAD
    waiting, running = list(enumerate(items)), dict[Any, int]()
    waiting.reverse()
    patience = Wait(
        "the cluster's next result", LONGEST_SECONDS, "see `ray status` for what is free"
    )
    try:
        while waiting or running:
            while waiting and len(running) < limit:
                index, item = waiting.pop()
                running[remote.remote(work, item)] = index
            done = _next(list(running), patience)
            result, problem = ray.get(done)
            if problem:
                raise UserError(problem)
            yield running.pop(done), result
    except (Exception, GeneratorExit):
        # ray.cancel ends this whole process if a task ends at that very moment (Ray 2.60: "Check
        # failed: it != submissible_tasks_.end()"), so what has been handed out is waited for; not
        # after an interruption: Ray ends a process's tasks with it.
        _ended(list(running))
        raise


def _ended(tasks: list[Any]) -> None:
    """Wait until the tasks have ended, however, but not for ever."""
    import ray

    def ended() -> bool:
        return not tasks or not ray.wait(tasks, num_returns=len(tasks), timeout=1.0)[1]

    with suppress(ray.exceptions.RayError, TimeoutError):
        wait_for(ended, "tasks that have begun, since another one failed", ENDING_SECONDS, pause=0)


def _next(tasks: list[Any], patience: Wait) -> Any:
    """The next task that has ended."""
    import ray

    patience.restart()
    while True:
        ready, _ = ray.wait(tasks, num_returns=1, timeout=1.0)
        if ready:
            return ready[0]
        try:
            patience.check()
        except TimeoutError as error:
            raise UserError(str(error)) from None


def _attempt(work: Callable[[Any], Any], item: Any) -> tuple[Any, str]:
    """Return the user's errors as values: Ray would wrap them in a traceback."""
    try:
        return work(item), ""
    except UserError as error:
        return None, str(error)
