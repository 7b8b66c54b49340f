"""From a kill to the next step: what the seconds are made of, on a cluster that is up.

    python -m benchmarks.resuming [--rounds 3] [--workers 2]

A small run is struck by kill -9 of one worker, or of its driver, after which the same command
starts again. Phases end where an observer outside sees it: in the driver's log, in the titles that
Ray gives its processes, and in the files of the run and of rank 0's spool.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.kills import SMALL, Victim, cluster, family, small_data
from benchmarks.table import machine, markdown, record

PHASES = (  # name, what ends it
    ("detection, teardown", "the driver says so; for a killed driver the new one is started"),
    ("driver", "imports, joining the cluster: the attempt has begun"),
    ("controller's process", "Ray Train's controller is there"),
    ("workers' processes", "placement, start, imports of Ray: the first worker joins"),
    ("torch, process group", "the last worker has joined"),
    ("data, network, checkpoint", "rank 0 is about to train"),
    ("first batch and step", "the step is logged"),
)
LIMIT, LOOK = 300.0, 0.02


class Observer:
    """Sees when each phase of a run's start ends, by looking every 20 ms.

    Args:
        run: the run's folder. log: the driver's. temporary: where workers make their spools.
        workers: their number. raylet: the process that starts them.
    """

    def __init__(self, run: Path, log: Path, temporary: Path, workers: int, raylet: int) -> None:
        self.run, self.log, self.temporary, self.workers = run, log, temporary, workers
        self.raylet = raylet
        self.attempts = len(list(run.glob("attempts/*")))
        self.spools = set(temporary.glob("era-spool-*"))
        self.failures = log.read_text().count("a worker failed")
        self.old = {pid for pid, _ in _workers(self.raylet)}
        self.joining: set[int] = set()

    def phases(self, driver_killed: bool) -> list[float]:
        """Seconds of each phase, from now on."""
        ends: list[Callable[[], bool]] = [
            lambda: driver_killed or self.log.read_text().count("a worker failed") > self.failures,
            lambda: len(list(self.run.glob("attempts/*"))) > self.attempts,
            lambda: any("TrainController" in name for _, name in self._new()),
            lambda: bool(self._joining()),
            self._all_joined,
            lambda: bool(self._new_spools()),
            lambda: sum(map(_lines, self._new_spools())) > lines,
        ]
        seconds, begin, lines = list[float](), time.monotonic(), 0
        for end in ends:
            since = time.monotonic()
            while not end():
                assert time.monotonic() - begin < LIMIT, "it does not go on"
                time.sleep(LOOK)
            seconds.append(time.monotonic() - since)
            lines = sum(map(_lines, self._new_spools()))  # those up to the checkpoint
        return seconds

    def _new(self) -> list[tuple[int, str]]:
        return [(pid, name) for pid, name in _workers(self.raylet) if pid not in self.old]

    def _joining(self) -> set[int]:
        self.joining |= {pid for pid, name in self._new() if "_join" in name}
        return self.joining

    def _all_joined(self) -> bool:
        joining = {pid for pid, name in self._new() if "_join" in name}
        self.joining |= joining
        return len(self.joining) == self.workers and not joining

    def _new_spools(self) -> list[Path]:
        return [
            spool
            for spool in self.temporary.glob("era-spool-*")
            if spool not in self.spools and (spool / "metrics.jsonl").exists()
        ]


def main() -> None:
    """Strike, observe, print a table and record it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="resuming-") as name:
        folder = Path(name)
        (folder / "tmp").mkdir()
        os.environ["TMPDIR"] = str(folder / "tmp")
        data = small_data(folder)
        with cluster(folder) as (head, address):
            found: dict[str, list[list[float]]] = {"worker": [], "driver": []}
            for number in range(args.rounds):
                for victim, rounds in found.items():
                    rounds.append(_strike(folder, data, victim, number, args, head, address))
    rows = [
        [phase, *(f"{_median(found[victim], i):.1f}" for victim in found), end]
        for i, (phase, end) in enumerate(PHASES)
    ]
    totals = (statistics.median(map(sum, found[victim])) for victim in found)
    rows.append(["together (median of sums)", *(f"{total:.1f}" for total in totals), ""])
    note = (
        f"{machine()}. Seconds, medians of {args.rounds} rounds; {args.workers} workers;"
        " `python -m benchmarks.resuming`."
    )
    table = markdown(["phase", "worker killed", "driver killed", "ends when"], rows)
    record("From a kill to the next step", f"{note}\n\n{table}")


def _strike(
    folder: Path,
    data: list[str],
    victim: str,
    number: int,
    args: argparse.Namespace,
    head: int,
    address: str,
) -> list[float]:
    name = f"{victim}-{number}"
    log, run = folder / f"{name}.log", folder / name
    command = ["train", "--config", "tiny", *SMALL, "train.steps=4000", "train.validate_every=0"]
    command += ["checkpoint.every=1", f"run.root={folder}", f"run.name={name}", *data]
    command += [f"scaling.workers={args.workers}"]
    first = Victim(command, log, head, address)
    while len(list(run.glob("checkpoints/*/COMMIT"))) < 1:
        assert first.process.poll() is None, log.read_text()
        time.sleep(0.2)
    raylet = next(pid for pid, n in family(head).items() if "raylet/raylet" in n)
    observer = Observer(run, log, folder / "tmp", args.workers, raylet)
    if victim == "driver":
        first.process.kill()
        again = Victim(command, log, head, address)
    else:
        os.kill(max(pid for pid, n in _workers(raylet) if "RayTrainWorker" in n), signal.SIGKILL)
        again = first
    try:
        return observer.phases(victim == "driver")
    finally:
        again.process.terminate()
        again.process.wait(300)


def _lines(spool: Path) -> int:
    return (spool / "metrics.jsonl").read_bytes().count(b"\n")


def _median(rounds: list[list[float]], phase: int) -> float:
    return statistics.median(seconds[phase] for seconds in rounds)


def _workers(raylet: int) -> list[tuple[int, str]]:
    """The processes that this node's raylet has started, with their titles."""
    found = []
    for path in Path(f"/proc/{raylet}/task").glob("*/children"):
        for pid in path.read_text().split():
            try:
                title = Path(f"/proc/{pid}/cmdline").read_bytes()
            except OSError:  # gone meanwhile
                continue
            found.append((int(pid), title.rstrip(b"\0").decode(errors="replace")))
    return found


if __name__ == "__main__":
    main()
