"""Work over many items: on a cluster, where one of them fails; in threads, where some are idle."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest

from pipeline.errors import UserError
from pipeline.parallel_map import SPARE, in_order, parallel_map

FAILS = """
import sys, time
from pipeline.errors import UserError
from pipeline.parallel_map import parallel_map

def work(item):
    time.sleep(0.003 * (item % 3))
    if item == 1:
        raise UserError("item 1 is bad")
    return item

for _ in range(300):
    try:
        list(parallel_map(work, range(8)))
        sys.exit("no error")
    except UserError as error:
        assert str(error) == "item 1 is bad"
for _ in parallel_map(work, [0]):
    break  # nothing is at work any more
print("survived")
"""


def test_a_failure_does_not_take_the_process_along(ray_cluster: str) -> None:
    """Ray's cancellation of a task that ends at that moment did, after some hundred failures."""
    done = subprocess.run(
        [sys.executable, "-c", FAILS], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.stdout.endswith("survived\n"), done.stderr[-2000:]


def most_at_once(shards: int, threads: int, expected: int) -> int:
    """How many pairs of all shards are loaded at the same time; waits for as many as expected."""
    lock, reached = threading.Lock(), threading.Event()
    now, most = 0, 0

    def load(pair: int) -> int:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
            if now >= expected:
                reached.set()
        reached.wait(10)
        time.sleep(0.02)  # for one too many
        with lock:
            now -= 1
        return pair

    def convert(shard: int) -> list[int]:
        return list(in_order(load, range(6)))

    found = dict(parallel_map(convert, range(shards), workers=threads))
    assert found == {shard: list(range(6)) for shard in range(shards)}
    return most


def test_threads_without_a_shard_help_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.parallel_map.has_cluster", lambda: False)
    most = 4 + SPARE  # and never more, since pairs are large
    assert most_at_once(shards=1, threads=4, expected=most) == most
    assert most_at_once(shards=9, threads=4, expected=most) == most
    assert most_at_once(shards=2, threads=1, expected=1) == 1


def test_what_fails_ahead_of_time_fails_in_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.parallel_map.has_cluster", lambda: False)
    seen = []

    def load(pair: int) -> int:
        time.sleep(0.05 if pair == 0 else 0)
        if pair == 1:
            raise UserError("pair 1 is bad")
        return pair

    def convert(_: int) -> None:
        for pair in in_order(load, range(6)):
            seen.append(pair)

    with pytest.raises(UserError, match="pair 1 is bad"):
        list(parallel_map(convert, [0], workers=4))
    assert seen == [0]
