"""The chain as its users run it: on S3, through the command line, with the driver killed."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import S3Server
from faulty_proxy import faulty_proxy
from small_run import STEPS, assert_same_run, config_of

from pipeline import storage
from pipeline.config import TrainConfig, to_plain
from pipeline.evaluate import evaluate
from pipeline.preprocess import preprocess
from pipeline.restore import restore
from pipeline.runfolder import RunFolder
from pipeline.runs import pull
from pipeline.synthesize import synthesize
from pipeline.train import train


def test_whole_chain_on_s3(ray_cluster: str, s3_server: S3Server, tmp_path: Path) -> None:
    pairs, shards, runs, out = (
        storage.join(s3_server.url, name) for name in ("pairs", "shards", "runs", "out")
    )
    synthesize("bundled", pairs, 6, 0, (48, 40), 3.0)
    assert preprocess("dpdd", pairs, shards)["samples"] == 6
    steps = "train.steps=3", "train.validate_every=0", "checkpoint.every=2"
    config = config_of(Path("unused"), Path("unused"), "chain", *steps)
    run = train(moved(config, runs, shards, tmp_path / "cache"))
    assert run["step"] == 3
    assert storage.exists(storage.join(runs, "chain", "samples.jsonl"))
    found = evaluate(run["run"], storage.join(shards, "test"), storage.join(out, "evaluation"))
    assert found.summary["images"] == 1
    assert storage.exists(storage.join(out, "evaluation", "gallery.html"))
    blurred = storage.join(pairs, "test_c", "source", "*.png")
    assert restore([blurred], storage.join(out, "restored"), run["run"])["restored"] == 1
    assert len(storage.find(storage.join(out, "restored"))) == 1
    assert pull(runs, str(tmp_path / "bundle"))["step"] == 3
    secret = s3_server.environment["AWS_SECRET_ACCESS_KEY"].encode()
    for entry in storage.find(storage.join(runs, "chain")):
        assert secret not in storage.read_bytes(entry.url)


def moved(config: TrainConfig, runs: str, shards: str, cache: Path) -> TrainConfig:
    """The same run in another place, on other shards."""
    train, val = storage.join(shards, "train"), storage.join(shards, "val")
    return replace(
        config,
        run=replace(config.run, root=runs),
        data=replace(config.data, train=train, val=val),
        cache=replace(config.cache, dir=str(cache)),
    )


def start(config: TrainConfig, folder: Path, **environment: str) -> subprocess.Popen[str]:
    """`era train` in a process of its own, on the cluster that RAY_ADDRESS names, if any."""
    path = folder / "config.yaml"
    folder.mkdir(exist_ok=True)
    path.write_text(json.dumps(to_plain(config)))
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline", "train", "--config", str(path), "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
    )


def wait_for_step(run: Path, step: int, process: subprocess.Popen[str]) -> None:
    """Wait until a checkpoint of that step or a later one is there."""
    folder = RunFolder(str(run))
    for _ in range(1200):
        if (folder.latest_step() or 0) >= step:
            return
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.1)
    raise AssertionError("no checkpoint appeared")


def slow(data: Path, root: Path, name: str) -> TrainConfig:
    """A run that lasts long enough to be struck in the middle."""
    return config_of(data, root, name, "train.steps=400", "train.validate_every=0")


def test_sigterm_saves_and_the_same_command_goes_on(
    ray_cluster: str, tiny_data: Path, tmp_path: Path
) -> None:
    config = slow(tiny_data, tmp_path, "stopped")
    process = start(config, tmp_path / "first")
    wait_for_step(tmp_path / "stopped", 3, process)
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=120)
    assert process.returncode == 143, log
    reached = RunFolder(str(tmp_path / "stopped")).latest_step()
    assert reached is not None
    assert reached < 400
    (kept,) = (tmp_path / "stopped" / "logs").iterdir()
    said = kept.read_text().splitlines()
    assert any("saving a checkpoint, then stopping" in line for line in said)
    assert said[-1] == "ended by Stopped: SIGTERM"
    assert not (tmp_path / "stopped" / "result.json").exists()
    config = replace(config, debug=replace(config.debug, stop_at=reached + 2))
    again = start(config, tmp_path / "second")
    out, log = again.communicate(timeout=120)
    assert again.returncode == 0, log
    assert json.loads(out)["step"] == reached + 2
    assert f"resumed at step {reached}" in log


@pytest.mark.full
def test_a_bucket_that_fails_for_a_while_changes_nothing(
    undisturbed: dict[str, Any], s3_server: S3Server, tiny_data: Path, tmp_path: Path
) -> None:
    """A whole `era train` on a cluster of its own, its bucket out of order for 40 seconds."""
    outage = threading.Event()
    shutil.copytree(tiny_data, s3_server.folder / s3_server.bucket / "shards")
    with faulty_proxy(
        s3_server.endpoint, lambda *_: "slowdown" if outage.is_set() else ""
    ) as proxy:
        config = config_of(tiny_data, Path("unused"), "outage")
        shards, runs = storage.join(s3_server.url, "shards"), f"{s3_server.url}/runs"
        config = moved(config, runs, shards, tmp_path / "cache")
        process = start(config, tmp_path, AWS_ENDPOINT_URL=proxy.endpoint, RAY_ADDRESS="")
        run = s3_server.folder / s3_server.bucket / "runs" / "outage"
        wait_for_step(run, 3, process)
        outage.set()
        time.sleep(40)
        assert process.poll() is None
        outage.clear()
        out, log = process.communicate(timeout=300)
        assert process.returncode == 0, log
        assert proxy.faults() > 3
    assert len((run / "attempts.jsonl").read_text().splitlines()) == 1, log
    assert_same_run(undisturbed, {**json.loads(out), "run": str(run)})


@pytest.mark.full
def test_random_kills_of_drivers_and_workers_change_nothing(
    undisturbed: dict[str, Any], tiny_data: Path, tmp_path: Path
) -> None:
    seed = int(os.environ.get("ERA_TEST_SEED", random.SystemRandom().randrange(10**6)))
    print(f"ERA_TEST_SEED={seed}")
    rng = random.Random(seed)
    for attempt in range(3):
        process = start(config_of(tiny_data, tmp_path, "struck"), tmp_path / f"try{attempt}")
        time.sleep(rng.uniform(8, 16))
        victim = rng.choice([process.pid, *workers_of(tmp_path / "struck")])
        with suppress(ProcessLookupError):  # a worker that has just ended
            os.kill(victim, signal.SIGKILL)
        if victim != process.pid:
            time.sleep(rng.uniform(0, 5))
        process.kill()
        process.wait(timeout=60)
    struck = train(config_of(tiny_data, tmp_path, "struck"))
    assert struck["step"] == STEPS
    assert_same_run(undisturbed, struck)


def workers_of(run: Path) -> list[int]:
    """The training processes of this machine."""
    found = []
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has ended meanwhile
            if b"RayTrainWorker" in command.read_bytes():
                found.append(int(command.parent.name))
    return found


@pytest.mark.full
def test_demo_through_the_command_line(ray_cluster: str, tmp_path: Path) -> None:
    """The demo with a short training: all its files, and running it again is quick and equal."""
    command = [sys.executable, "-m", "pipeline", "demo", "--out", str(tmp_path), "--json"]
    command += ["train.steps=6", "train.patch=[32]", "tracking.wandb=disabled"]
    done = [
        subprocess.run(command, capture_output=True, text=True, timeout=400, check=True)
        for _ in range(2)
    ]
    found = [json.loads(one.stdout) for one in done]
    keys = ("psnr_blurred", "psnr_restored", "ssim_blurred", "ssim_restored", "images")
    assert [found[0][key] for key in keys] == [found[1][key] for key in keys]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert set(summary) == {*keys, "seconds"}
    assert summary["images"] == 20
    assert (tmp_path / "report.html").stat().st_size > 10**6
    assert (tmp_path / "before_after.png").exists()
    assert len(list((tmp_path / "restored").iterdir())) == 20
