"""Random kills, pauses and continuations of small runs and sweeps; each must end as if undisturbed.

    python -m benchmarks.kills [--runs 10] [--sweeps 2] [--seed 0] [--minutes 60] [--folder F]
                               [--slow 1]

Every run is started again after each kill until it finishes. Then its samples, its curve and
the bits of its weights are compared with those of an undisturbed run, and every checkpoint is read.
A line per run says its seed and what was done to it; the same seed deals the same blows, though not
at the same steps. Four of five join one cluster that stays; the others have their own, which dies
with them. With --folder the results are kept there, and the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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
RUN = ["train", "--config", "tiny", "train.steps=480", *SMALL]
SWEEP = ["tune", "--config", "tiny", "train.steps=16", *SMALL]
POPULATION = """
overrides: [train.steps=24]
trials: 3
scheduler: pbt
space:
  train.learning_rate: {loguniform: [5.0e-4, 8.0e-3]}
  loss.omega: {uniform: [0.3, 0.8]}
"""
RESULTS = "results.jsonl"
BLOWS = ("kill driver", "kill worker", "kill all", "pause", "pause and start again", "terminate")
LIMIT = 400.0  # seconds that one command may take
LATEST = 15.0  # seconds until a blow
CPUS = 6  # logical ones of the cluster that stays: stopped processes keep theirs


class Victim:
    """The command, running in a process of its own.

    Args:
        command: of the program. log: receives its output.
        head: process of the cluster that it is to join; None for one of its own.
        address: of that cluster.
    """

    def __init__(self, command: list[str], log: Path, head: int | None, address: str) -> None:
        environment = {k: v for k, v in os.environ.items() if head or "RAY_AUTH" not in k}
        if head is not None:
            environment["RAY_ADDRESS"] = address
        self.head, self.asleep = head, set[int]()
        with log.open("ab") as stream:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pipeline", *command],
                stdout=stream,
                stderr=stream,
                env=environment,
            )

    def processes(self) -> dict[int, str]:
        """Its processes and the cluster's workers that are at work, but no idle or stopped one."""
        found = family(self.process.pid)
        if self.head is not None:
            workers = family(self.head).items()
            found |= {pid: name for pid, name in workers if _at_work(pid, name)}
        return found

    def strike(self, blow: str, rng: random.Random) -> None:
        """Deal one blow."""
        struck = self.processes()
        if blow == "kill driver":
            _send(signal.SIGKILL, [self.process.pid])
        elif blow == "kill worker":
            _send(signal.SIGKILL, [p for p, name in struck.items() if "RayTrainWorker" in name][:1])
        elif blow == "kill all":
            _send(signal.SIGKILL, list(struck))
        elif blow == "terminate":
            _send(signal.SIGTERM, [self.process.pid])
        else:
            self.asleep = set(struck)
            _send(signal.SIGSTOP, list(struck))
            if blow == "pause":
                time.sleep(rng.uniform(1, 8))
                self.wake()

    def wake(self) -> None:
        """Let it go on after a pause."""
        _send(signal.SIGCONT, list(self.asleep))

    def end(self) -> None:
        """Kill what is left of it."""
        _send(signal.SIGKILL, [*family(self.process.pid), *self.asleep])
        self.process.wait()


def torture(
    command: list[str], seed: str, blows: int, log: Path, head: int | None, address: str
) -> list[str]:
    """Run a command to its end against a number of kills; returns them."""
    rng, dealt = random.Random(seed), list[str]()
    paused: list[Victim] = []
    try:
        for number in range(blows + 20):
            own = log.with_suffix(f".{number}.log")
            victim = Victim(command, own, head, address)
            for other in paused:  # a node that hung wakes up while the newer attempt runs
                _wait(victim, rng.uniform(2, 12))
                other.wake()
            end, strikes = time.monotonic() + LIMIT, len(dealt) < blows
            if strikes:
                _wait(victim, rng.uniform(2, LATEST))
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
                raise AssertionError(f"no end after {LIMIT:g} s: {own}; blows: {dealt}")
            if code == 0:
                return dealt
            # One that hung before its first attempt takes the run over when it wakes up.
            overtaken = bool(paused) and "has taken it over since" in own.read_text()
            if not (strikes or overtaken) and code not in (-signal.SIGKILL, 143):
                raise AssertionError(f"exit code {code}: {own}; blows: {dealt}")
    finally:
        for other in paused:
            other.end()
    raise AssertionError(f"never ended; blows: {dealt}")


def same(one: str, other: str) -> None:
    """Raise where two runs, or the trials of two sweeps, differ; read all checkpoints."""
    exchanges = [
        [p.read_text() for p in sorted(Path(u, "exchanges").glob("*"))] for u in (one, other)
    ]
    assert exchanges[0] == exchanges[1], f"{other}: other exchanges"
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
    end = time.monotonic() + 60 * args.minutes
    with _work(args.folder) as folder:
        data = small_data(folder)
        with cluster(folder) as (head, address):
            (folder / "population.yaml").write_text(POPULATION)
            population = ["tune", "--config", str(folder / "population.yaml"), *SMALL]
            half = args.sweeps // 2
            counts = {"run": args.runs, "sweep": args.sweeps - half, "population": half}
            commands = {"run": RUN, "sweep": SWEEP, "population": population}
            for kind, number in _mixed(counts):
                seed = f"{args.seed}/{kind}/{number}"
                if time.monotonic() < end and seed not in _done(folder):
                    command = [*commands[kind], f"run.root={folder / kind}", *data]
                    _one(folder, kind, seed, command, head, address)
        rows = [json.loads(line) for line in (folder / RESULTS).read_text().splitlines()]
        wrong = [row["seed"] for row in rows if row["error"]]
        blows = sum(len(row["blows"]) for row in rows)
        print(f"{len(rows) - len(wrong)} of {len(rows)} right after {blows} blows")
    return int(bool(wrong))


def _one(folder: Path, kind: str, seed: str, command: list[str], head: int, address: str) -> None:
    """One run or sweep against its blows; a line of the results says how it ended."""
    calm, name = f"{kind}-calm", seed.replace("/", "-")
    log, rng = folder / f"{name}.log", random.Random(seed)
    torture([*command, f"run.name={calm}"], "", 0, folder / f"{calm}.log", head, address)
    count, own, error = rng.randint(2, 6), rng.random() < 0.2, ""
    begin, blows = time.monotonic(), list[str]()
    try:
        place = None if own else head
        blows = torture([*command, f"run.name={name}"], seed, count, log, place, address)
        same(str(folder / kind / calm), str(folder / kind / name))
    except (AssertionError, UserError) as found:
        error = str(found)
    row = {"seed": seed, "own cluster": own, "blows": blows, "error": error}
    with (folder / RESULTS).open("a") as results:
        results.write(json.dumps({**row, "seconds": round(time.monotonic() - begin)}) + "\n")
    said = f"WRONG  {error}" if error else f"right  {', '.join(blows)}"
    print(f"{seed} {'(own cluster)' if own else ''} {said}", flush=True)


def _mixed(counts: dict[str, int]) -> list[tuple[str, int]]:
    """The numbers of each kind, the kinds evenly mixed."""
    places = [(n / count, kind, n) for kind, count in counts.items() for n in range(count)]
    return [(kind, number) for _, kind, number in sorted(places)]


def _done(folder: Path) -> set[str]:
    text = (folder / RESULTS).read_text() if (folder / RESULTS).exists() else ""
    return {json.loads(line)["seed"] for line in text.splitlines()}


def _lines(url: str, name: str) -> list[dict[str, object]]:
    lines = RunFolder(url).lines(name)
    return [{k: v for k, v in line.items() if not k.startswith(CLOCK)} for line in lines]


def _wait(victim: Victim, seconds: float) -> None:
    try:
        victim.process.wait(max(0.0, seconds))
    except subprocess.TimeoutExpired:
        return


def family(root: int) -> dict[int, str]:
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


def _at_work(pid: int, name: str) -> bool:
    """Whether a process of a cluster works for a command that is not stopped."""
    if not name.startswith("ray::") or name.startswith("ray::IDLE") or "Agent" in name:
        return False
    try:
        return "State:\tT" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:  # it has ended meanwhile
        return False


def small_data(folder: Path) -> list[str]:
    pairs, shards = str(folder / "pairs"), folder / "shards"
    chosen = [f"data.train={shards / 'train'}", f"data.val={shards / 'val'}"]
    if (shards / "val" / "manifest.json").exists():
        return chosen
    for command in (
        ["synthesize", "--dest", pairs, "--pairs", "30", "--size", "96x96", "--radius-max", "3"],
        ["preprocess", "--dataset", "dpdd", "--source", pairs, "--dest", str(shards)],
    ):
        subprocess.run(
            [sys.executable, "-m", "pipeline", *command], check=True, capture_output=True
        )
    return chosen


@contextmanager
def _work(kept: Path | None) -> Iterator[Path]:
    if kept is not None:
        kept.mkdir(parents=True, exist_ok=True)
        yield kept.resolve()
        return
    folder = Path(tempfile.mkdtemp(prefix="kills-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def cluster(folder: Path) -> Iterator[tuple[int, str]]:
    """A cluster on this machine alone; its process and address."""
    from ray.util import get_node_ip_address

    host = get_node_ip_address()
    with socket.socket() as probe:
        probe.bind((host, 0))
        port = int(probe.getsockname()[1])
    ray, temporary = Path(sys.executable).with_name("ray"), tempfile.mkdtemp(prefix="ray-")
    command = [str(ray), "start", "--head", "--block", "--min-worker-port=0"]
    command += [f"--port={port}", f"--temp-dir={temporary}", f"--num-cpus={CPUS}"]
    command += ["--max-worker-port=0", '--resources={"trial": 100}']
    command += ["--include-dashboard=false", "--object-store-memory=100000000"]
    os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(20))
    os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_worker_niceness="0")
    with (folder / "cluster.log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        for _ in range(300):
            with suppress(OSError):
                socket.create_connection((host, port), 1).close()
                break
            time.sleep(0.2)
        yield process.pid, f"{host}:{port}"
    finally:
        process.terminate()
        process.wait()
        shutil.rmtree(temporary, ignore_errors=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--sweeps", type=int, default=2)
    parser.add_argument("--seed", default="0")
    parser.add_argument("--minutes", type=float, default=60.0, help="no new run after these")
    parser.add_argument("--folder", type=Path, help="keep all here; the same command resumes it")
    parser.add_argument("--slow", type=float, default=1.0, help="how slow the machine is: waits")
    args = parser.parse_args()
    global LIMIT, LATEST
    LIMIT, LATEST = LIMIT * args.slow, LATEST * args.slow
    return args


if __name__ == "__main__":
    sys.exit(main())
