"""Random kills, pauses and continuations of small runs and sweeps; each must end as if undisturbed.

    python -m benchmarks.kills [--runs 10] [--sweeps 2] [--seed 0] [--minutes 60]

Every run is started again after each kill until it finishes. Then its samples, its curve and
the bits of its weights are compared with those of an undisturbed run, and every checkpoint is read.
A line per run says its seed and what was done to it; the same seed deals the same blows, though not
at the same steps.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import UserError
from pipeline.runfolder import RunFolder
from pipeline.runfolder.names import METRICS, MODEL, SAMPLES
from pipeline.runs.search import find_runs

CLOCK = ("time/", "memory/", "train/samples_per_second")
NETWORK = (
    "model.overrides={stages: 3, kernels: 3, kernel_size: 7, radius_max: 3.0,"
    " prior_channels: [4, 8], error_channels: [4], estimator_channels: [4]}"
)
SMALL = [
    NETWORK,
    "data.crops_per_image=3",
    "train.global_batch=4",
    "train.patch=[64]",
    "train.validate_every=8",
    "train.deterministic=strict",
    "checkpoint.every=4",
    "tracking.wandb=disabled",
    "tracking.log_every=1",
    "debug.log_samples=true",
    "scaling.workers=1",
]
RUN = ["train", "--config", "tiny", "train.steps=48", *SMALL]
SWEEP = ["tune", "--config", "tiny", "train.steps=16", *SMALL]
BLOWS = ("kill driver", "kill worker", "kill all", "pause", "pause and start again", "terminate")
LIMIT = 400.0  # seconds that one command may take


class Victim:
    """The command, running in a process of its own."""

    def __init__(self, command: list[str], log: Path) -> None:
        with log.open("ab") as stream:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pipeline", *command], stdout=stream, stderr=stream
            )

    def strike(self, blow: str, rng: random.Random) -> None:
        """Deal one blow."""
        family = _family(self.process.pid)
        if blow == "kill driver":
            _send(signal.SIGKILL, [self.process.pid])
        elif blow == "kill worker":
            _send(signal.SIGKILL, [p for p, name in family.items() if "RayTrainWorker" in name][:1])
        elif blow == "kill all":
            _send(signal.SIGKILL, list(family))
        elif blow == "terminate":
            _send(signal.SIGTERM, [self.process.pid])
        else:
            _send(signal.SIGSTOP, list(family))
            time.sleep(rng.uniform(1, 8))
            if blow == "pause":
                _send(signal.SIGCONT, list(family))

    def end(self) -> None:
        """Kill what is left of it."""
        _send(signal.SIGKILL, list(_family(self.process.pid)))
        self.process.wait()


def torture(command: list[str], seed: str, blows: int, log: Path) -> list[str]:
    """Run a command to its end against a number of kills; returns them."""
    rng, dealt = random.Random(seed), list[str]()
    paused: list[Victim] = []
    try:
        for _ in range(blows + 20):
            victim = Victim(command, log)
            for other in paused:  # a node that hung wakes up while the newer attempt runs
                time.sleep(rng.uniform(5, 20))
                _send(signal.SIGCONT, list(_family(other.process.pid)))
            end, strikes = time.monotonic() + LIMIT, len(dealt) < blows
            if strikes:
                _wait(victim, rng.uniform(2, 30))
                blow = rng.choice(BLOWS)
                if victim.process.poll() is None:
                    victim.strike(blow, rng)
                    dealt.append(blow)
                    if blow == "pause and start again":
                        paused.append(victim)
                        continue
            _wait(victim, end - time.monotonic())
            code = victim.process.poll()
            if code is None:
                victim.end()
                raise AssertionError(f"no end after {LIMIT:g} s; blows: {dealt}")
            if code == 0:
                return dealt
            if not strikes and code not in (-signal.SIGKILL, 143):
                raise AssertionError(f"exit code {code}; blows: {dealt}")
    finally:
        for other in paused:
            other.end()
    raise AssertionError(f"never ended; blows: {dealt}")


def same(one: str, other: str) -> None:
    """Raise where two runs, or the trials of two sweeps, differ; read all checkpoints."""
    found, expected = find_runs(other), find_runs(one)
    assert [run.name for run in found] == [run.name for run in expected] or len(expected) == 1
    for left, right in zip(expected, found, strict=True):
        for name in (METRICS, SAMPLES):
            assert _lines(left.url, name) == _lines(right.url, name), f"{right.url}: {name} differs"
        newest = [RunFolder(run.url).latest() for run in (left, right)]
        assert newest[0] and newest[1] and newest[0].step == newest[1].step, right.url
        assert newest[0].read(MODEL) == newest[1].read(MODEL), f"{right.url}: weights differ"
        for checkpoint in RunFolder(right.url).checkpoints():
            checkpoint.verify()


def main() -> int:
    """Run everything; 1 if anything was wrong."""
    args = _arguments()
    end, wrong, done = time.monotonic() + 60 * args.minutes, 0, 0
    with _work(args.keep) as folder:
        data = _data(folder)
        for kind, base, count in (("run", RUN, args.runs), ("sweep", SWEEP, args.sweeps)):
            place = [f"run.root={folder / kind}", *data]
            calm = f"{kind}-calm"
            if count and torture([*base, *place, f"run.name={calm}"], "", 0, folder / "calm.log"):
                raise AssertionError("the undisturbed one was disturbed")
            for number in range(count):
                if time.monotonic() > end:
                    break
                seed, log = f"{args.seed}/{kind}/{number}", folder / f"{kind}-{number}.log"
                try:
                    command = [*base, *place, f"run.name={kind}-{number}"]
                    blows = torture(command, seed, random.Random(seed).randint(1, 5), log)
                    same(str(folder / kind / calm), str(folder / kind / f"{kind}-{number}"))
                    print(f"right  seed {seed}: {', '.join(blows)}", flush=True)
                except (AssertionError, UserError) as error:
                    wrong += 1
                    print(f"WRONG  seed {seed}: {error}; {log}", flush=True)
                done += 1
        print(f"{done - wrong} of {done} right")
        if wrong and args.keep:
            print(f"kept in {folder}")
    return int(wrong > 0)


def _lines(url: str, name: str) -> list[dict[str, object]]:
    lines = RunFolder(url).lines(name)
    return [{k: v for k, v in line.items() if not k.startswith(CLOCK)} for line in lines]


def _wait(victim: Victim, seconds: float) -> None:
    try:
        victim.process.wait(max(0.0, seconds))
    except subprocess.TimeoutExpired:
        return


def _family(root: int) -> dict[int, str]:
    """A process and all its descendants, with their command lines."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True)
    rows = [line.split(None, 2) for line in listed.stdout.splitlines()]
    names = {int(row[0]): row[2] if len(row) > 2 else "" for row in rows}
    parents = {int(row[0]): int(row[1]) for row in rows}
    family, size = {root}, 0
    while len(family) > size:
        size = len(family)
        family |= {pid for pid, parent in parents.items() if parent in family}
    return {pid: names.get(pid, "") for pid in family if pid in names}


def _send(number: int, pids: list[int]) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def _data(folder: Path) -> list[str]:
    pairs, shards = str(folder / "pairs"), folder / "shards"
    for command in (
        ["synthesize", "--dest", pairs, "--pairs", "30", "--size", "96x96", "--radius-max", "3"],
        ["preprocess", "--dataset", "dpdd", "--source", pairs, "--dest", str(shards)],
    ):
        subprocess.run(
            [sys.executable, "-m", "pipeline", *command], check=True, capture_output=True
        )
    return [f"data.train={shards / 'train'}", f"data.val={shards / 'val'}"]


@contextmanager
def _work(keep: bool) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="kills-"))
    try:
        yield folder
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--sweeps", type=int, default=2)
    parser.add_argument("--seed", default="0")
    parser.add_argument("--minutes", type=float, default=60.0, help="no new run after these")
    parser.add_argument("--keep", action="store_true", help="keep the folder")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
