"""The users' day: the workflows of docs/tutorial.md, on a cluster with an S3 server.

Pairs, preprocess, train, a worker and then the driver killed, submitted again with more workers, a
sweep, an evaluation, the best pulled, a photograph restored. Only places and sizes are replaced.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import S3Server
from small_run import SMALL_NETWORK

from pipeline import storage
from pipeline.images import read_image
from pipeline.runfolder import RunFolder
from pipeline.runs import best_run, list_runs

TUTORIAL = (Path(__file__).parents[1] / "docs" / "tutorial.md").read_text()
STEPS, TRIAL_STEPS = 200, 4
SMALL = (
    f"'{SMALL_NETWORK}' data.crops_per_image=3 train.global_batch=5 train.patch=[24] "
    "tracking.wandb=disabled"
)
RUN = f"{SMALL} train.steps={STEPS} train.validate_every=40 checkpoint.every=5 scaling.threads=1"
TRIAL = f"{SMALL} train.steps={TRIAL_STEPS} train.validate_every=2 checkpoint.every=2"


class Day:
    """A user's shell: runs a workflow's block of the tutorial in a folder of its own."""

    def __init__(self, folder: Path, bucket: str, dashboard: str) -> None:
        self.folder = folder
        self.replaced = {
            "http://127.0.0.1:8265": dashboard,
            "s3://era": bucket,
            "--pairs 100": "--pairs 12 --size 56x48 --radius-max 3",
            "run.name=first": f"{RUN} debug.log_samples=true run.name=first",
            "run.name=sweep": f"{TRIAL} run.name=sweep",
        }

    def start(self, workflow: str) -> subprocess.Popen[str]:
        """Begin a workflow's block, without the cluster's address: a user is outside of it."""
        found = re.search(rf"\*\*{workflow}\*\*.*?```sh\n(.*?)```", TUTORIAL, re.DOTALL)
        assert found is not None
        script = found[1]
        for placeholder, value in self.replaced.items():
            script = script.replace(placeholder, value)
        return subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=self.folder,
            env={name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, workflow: str) -> str:
        """Run a workflow to its good end; returns what it printed."""
        process = self.start(workflow)
        try:
            log, _ = process.communicate(timeout=240)
        finally:
            process.kill()
        assert process.returncode == 0, log
        return log


@pytest.mark.full
@pytest.mark.timeout(1800)
def test_the_users_day(
    ray_cluster: str, s3_server: S3Server, tiny_pairs: Path, tmp_path: Path
) -> None:
    from ray.dashboard.utils import ray_address_to_api_server_url

    photo = next((tiny_pairs / "test_c" / "source").iterdir())
    shutil.copy(photo, tmp_path / "photo.png")
    day = Day(tmp_path, s3_server.url, ray_address_to_api_server_url(ray_cluster))

    run = storage.join(s3_server.url, "runs", "first")
    struck = day.start("Submit")
    try:
        reached = step_after(run, 0, struck)
        os.kill(pids_of_workers(ray_cluster)[-1], signal.SIGKILL)
        reached = step_after(run, reached + 10, struck)
        os.kill(pid_of_driver(day), signal.SIGKILL)
        log, _ = struck.communicate(timeout=120)
    finally:
        struck.kill()
    assert struck.returncode != 0, log  # the job's true end
    assert "a worker failed" in log
    reached = RunFolder(run).latest_step() or 0
    assert 0 < reached < STEPS

    log = day.run("Scale")
    assert f"on 2 workers, resumed at step {reached}" in log
    assert_one_unbroken_run(run)

    day.run("Sweep")
    runs = storage.join(s3_server.url, "runs")
    assert len(list_runs(storage.join(runs, "sweep"))["runs"]) == 4

    day.run("Pull")
    scores = storage.join(s3_server.url, "evaluation", "per_image.csv")
    assert len(storage.read_text(scores).splitlines()) > 1
    meta = json.loads((tmp_path / "bundle" / "meta.json").read_text())
    assert str(best_run(runs)["checkpoint"]).endswith(f"step-{meta['step']:08d}")
    before, after = (read_image(str(p)) for p in (photo, tmp_path / "restored" / "photo.png"))
    assert before.shape == after.shape
    assert (before != after).any()


def step_after(run: str, step: int, process: subprocess.Popen[str]) -> int:
    """Wait for a checkpoint beyond a step; returns its step."""
    return int(wait(lambda: (s := RunFolder(run).latest_step() or 0) > step and s, process, 120))


def wait(look: Callable[[], object], process: subprocess.Popen[str], seconds: float) -> object:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[0]
        if found := look():
            return found
        time.sleep(0.2)
    raise AssertionError("nothing happened in time")


def pids_of_workers(address: str) -> list[int]:
    """This cluster's training processes."""
    from ray.util.state import list_actors

    alive = [("class_name", "=", "RayTrainWorker"), ("state", "=", "ALIVE")]
    actors = list_actors(address, filters=alive, detail=True)
    assert actors
    return [int(actor.pid) for actor in actors]


def pid_of_driver(day: Day) -> int:
    """The process of `era train` that the job server started."""
    from ray.job_submission import JobSubmissionClient

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS")
        jobs = JobSubmissionClient(day.replaced["http://127.0.0.1:8265"]).list_jobs()
    running = [job for job in jobs if job.status == "RUNNING" and "train" in job.entrypoint]
    assert len(running) == 1
    assert running[0].driver_info is not None
    return int(running[0].driver_info.pid)


def assert_one_unbroken_run(run: str) -> None:
    """Every step once, in the samples and in the curve, whatever was killed."""
    lines = storage.read_text(storage.join(run, "samples.jsonl")).splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(STEPS))
    curve = storage.read_text(storage.join(run, "metrics.jsonl")).splitlines()
    logged = [line["step"] for line in map(json.loads, curve) if "train/loss" in line]
    assert logged == sorted(set(logged))
    assert logged[-1] == STEPS
    attempts = storage.read_text(storage.join(run, "attempts.jsonl")).splitlines()
    assert len(attempts) == 3  # begun, after the worker, after the driver
