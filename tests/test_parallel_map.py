"""Work over many items on a cluster, where one of them fails."""

from __future__ import annotations

import subprocess
import sys

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
