"""`era submit --address`: what is refused before anything is sent, and a real job server."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from ray_job_server import TOKEN, Wire, ray_job_server

from pipeline.config import load_train_config, to_plain
from pipeline.errors import UserError
from pipeline.submit import RayOptions, submit_to_ray, training_command, urls_command
from pipeline.submit.command import refuse_places
from pipeline.submit.follow import exit_code
from pipeline.submit.jobs import _running, connect
from pipeline.submit.package import pack
from pipeline.tune.config import load_sweep

ROOT = Path(__file__).parents[1]


def train_command(*overrides: str, shared: bool = False) -> Any:
    given = ["data.train=s3://b/train", "run.root=s3://b/runs", *overrides]
    return training_command("train", given, load_train_config("tiny", given), 1, shared)


def start(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline", "submit", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


def submit(*arguments: str, **environment: str) -> tuple[int, str, str]:
    process = start(*arguments, **environment)
    out, err = process.communicate(timeout=240)
    return process.returncode, out, err


def test_local_paths_are_refused_where_they_mean_nothing() -> None:
    refuse_places(train_command(), True, ())
    refuse_places(train_command("run.root=/mnt/runs", "storage.shared=true"), True, ())
    refuse_places(train_command("run.root=/mnt/runs", shared=True), True, ())
    refuse_places(train_command("run.root=/mnt/runs"), False, ())
    with pytest.raises(UserError, match=r"run.root=/mnt/runs .* several nodes.*storage.shared"):
        refuse_places(train_command("run.root=/mnt/runs"), True, ())
    with pytest.raises(UserError, match=r"data.val=val is relative"):
        refuse_places(train_command("data.val=val", shared=True), True, ())
    values = {"inputs": ["photos/a.png"], "out": "s3://b/out", "checkpoint": "tiny"}
    restore = urls_command("restore", ["photos/a.png"], values, False)
    refuse_places(restore, True, {"photos/a.png"})
    with pytest.raises(UserError, match=r"inputs=photos/a.png"):
        refuse_places(restore, True, ())
    values = {"data": "s3://b/t", "out": "s3://b/out", "against": ["other=/mnt/pictures"]}
    with pytest.raises(UserError, match=r"--against other=/mnt/pictures is a path of one machine"):
        refuse_places(urls_command("evaluate", [], values, False), True, ())


@pytest.mark.parametrize("url", ["s3://key:secret1@b/t", "s3://b/t?X-Amz-Signature=secret1"])
def test_credentials_in_a_url_never_become_a_jobs_command(url: str) -> None:
    with pytest.raises(UserError, match=r"credentials|presigned") as refused:
        refuse_places(train_command(f"data.val={url}"), True, ())
    assert "secret1" not in str(refused.value)


def test_a_file_travels_whole(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(
        "run: {name: mine, root: s3://b/r}\ndata: {train: 's3://b/t'}\n"
        "model: {overrides: {stages: 3}}\ntrain: {patch: [64, 96], learning_rate: 1.0e-3}\n"
        "scaling: {workers: [1, 4]}\n"
    )
    config = load_train_config(str(own))
    command = train_arguments("train", "--config", str(own))
    assert command[:2] == ["era", "train"]
    assert load_train_config(command[3]) == config
    assert json.loads(command[3])["loss"] == to_plain(config)["loss"]  # defaults included


def test_a_sweep_file_travels_whole(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(
        "train: {steps: 12}\ndata: {train: s3://b/t, val: s3://b/v}\n"
    )
    (tmp_path / "sweep.yaml").write_text(
        f"config: {tmp_path}/own.yaml\noverrides: [run.root=s3://b/r, train.validate_every=4]\n"
        "trials: 3\nspace: {train.learning_rate: {choice: [1.0e-3, 2.0e-3]}}\n"
    )
    wanted = load_sweep(str(tmp_path / "sweep.yaml"), ["train.seed=5"])
    command = train_arguments("tune", "--config", str(tmp_path / "sweep.yaml"), "train.seed=5")
    sent = load_sweep(command[3], [])
    assert sent.training() == wanted.training()
    assert (sent.space, sent.trials) == (wanted.space, 3)


def test_a_sweep_from_a_file_restarts_what_failed(tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text(
        "config: tiny\noverrides: [run.root=s3://b/r, data.train=s3://b/t, data.val=s3://b/v, "
        "train.validate_every=4]\ntrials: 3\n"
        "space: {train.learning_rate: {choice: [1.0e-3, 2.0e-3]}}\n"
    )
    whole = ("tune", "--config", str(tmp_path / "sweep.yaml"))
    assert "--resume-failed" not in train_arguments(*whole)
    assert train_arguments(*whole, "--resume-failed")[-1] == "--resume-failed"


def test_a_list_of_jobs_that_cannot_be_read_is_one_line() -> None:
    class Failing:
        def list_jobs(self) -> list[Any]:
            raise RuntimeError("Request failed with status code 500: Internal\nTraceback")

    command = urls_command("preprocess", ["--x"], {"source": "s3://b/r", "dest": "s3://b/d"}, False)
    with pytest.raises(UserError, match=r"http://h: its jobs cannot be listed \(Request failed"):
        _running(Failing(), "http://h", command, "era preprocess --x")


def train_arguments(verb: str, *arguments: str) -> list[str]:
    """The job's command line."""
    code, out, err = submit(verb, *arguments, "--kubernetes", "--dry-run", "--json")
    assert code == 0, err
    return shlex.split(json.loads(out)["spec"]["entrypoint"])


def test_working_directory_leaves_data_and_history_behind(tmp_path: Path) -> None:
    kept = ("code.py", "pipeline/data/order.py")
    left = (".git/x", ".venv/x", "data/x", "runs/x", "outputs/x", "a/__pycache__/x", ".env", "big")
    (tmp_path / "dir").mkdir()
    for name in (*kept, *left, ".gitignore"):
        path = tmp_path / "dir" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("big\n")
    _, names = pack(str(tmp_path / "dir"), str(tmp_path))
    assert {name for name in names if not name.endswith("/")} == {*kept, ".gitignore"}


def test_working_directory_too_large_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.submit.package.LIMIT_MB", 0.5)
    (tmp_path / "dir" / "films").mkdir(parents=True)
    (tmp_path / "dir" / "films" / "a").write_bytes(os.urandom(1_000_000))
    with pytest.raises(UserError, match=r"1 MB packed.*films/a \(1 MB\).*rayignore"):
        pack(str(tmp_path / "dir"), str(tmp_path))


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:8265", "such as http://127.0.0.1:8265"),
        ("http://[::1", "not a URL"),
        ("http://127.0.0.1:99999", "not a URL"),
        ("http://me:secret@host:8265", "no credential belongs there"),
        ("http://host:8265/?token=secret", "no credential belongs there"),
        ("me:secret@host", "expected the job server's URL"),
        ("http://127.0.0.1:1", "no Ray job server answers"),
    ],
)
def test_wrong_address_is_one_clear_line(address: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        connect(address)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("answer", ["{}", "[]", "null", "7", '{"ray_version": 7}', "<html>"])
def test_a_server_of_another_kind_is_one_clear_line(answer: str) -> None:
    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answer.encode())

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Other) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            with pytest.raises(UserError, match=f"127.0.0.1:{server.server_port}: "):
                connect(f"http://127.0.0.1:{server.server_port}")
        finally:
            server.shutdown()


def test_variables_go_by_name_only() -> None:
    for name, message in (("NAME=hidden", "give the name only"), ("ERA_UNSET", "not set")):
        with pytest.raises(UserError, match=message) as caught:
            submit_to_ray(train_command(), RayOptions("http://127.0.0.1:1", env=[name]), print)
        assert "hidden" not in str(caught.value)


def test_exit_codes_as_a_shell_has_them() -> None:
    assert [exit_code(code) for code in (0, 2, 143, -9, None)] == [0, 2, 143, 137, 1]


# From here on a real cluster.


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    import tempfile

    environment = {"PYTHONPATH": str(ROOT), "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2"}
    with (
        # Ray's sockets want short paths; what it still writes while it ends is left to it.
        tempfile.TemporaryDirectory(prefix="era-job-", ignore_cleanup_errors=True) as folder,
        ray_job_server(Path(folder), environment) as address,
    ):
        yield address


@pytest.fixture
def token(monkeypatch: pytest.MonkeyPatch) -> None:
    """Known in the environment, as a user's would be; other sessions' variables are not."""
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    monkeypatch.setenv("RAY_ADDRESS", "203.0.113.1:6379")  # --address goes before it


def ask(server: str, path: str) -> Any:
    """What the job server itself says; this process's Ray may speak to another cluster already."""
    url, token = f"{server}/api/jobs/{path}", {"Authorization": f"Bearer {TOKEN}"}
    with urllib.request.urlopen(urllib.request.Request(url, headers=token), timeout=60) as answer:
        return json.load(answer)


@pytest.mark.full
@pytest.mark.usefixtures("token")
def test_the_jobs_own_exit_code_comes_back(server: str, tmp_path: Path) -> None:
    missing = ["--dataset", "dpdd", "--source", str(tmp_path / "none"), "--dest", str(tmp_path)]
    code, out, err = submit("--address", server, "preprocess", *missing, "--json")
    assert code == 2, err
    assert json.loads(out)["exit_code"] == 2
    assert "no such folder" in err
    code, out, err = submit("preprocess", *missing, "--address", server, RAY_AUTH_TOKEN="x" * 32)
    assert (code, out) == (2, "")
    assert "wants another token" in err
    assert TOKEN not in err


@pytest.mark.full
@pytest.mark.usefixtures("token")
def test_a_dropped_log_loses_and_repeats_nothing(
    server: str, tiny_data: Path, tmp_path: Path
) -> None:
    """The wire is cut again and again; another submission finds the job; its end is its own."""
    wire = Wire(server)
    data = str(tiny_data / "train")
    arguments = [f"run.root={tmp_path}", "run.name=cut", f"data.train={data}", "train.steps=120"]
    arguments += ["scaling.workers=1", "checkpoint.every=60", "tracking.wandb=disabled"]
    log = tmp_path / "stderr"
    command = [sys.executable, "-m", "pipeline", "submit", "--address", wire.address, "train"]
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [*command, *arguments, "--json"], stdout=subprocess.PIPE, stderr=stderr, text=True
        )
    while process.poll() is None:
        time.sleep(1.0)
        if "sent to" in log.read_text():
            wire.cut()
    assert process.stdout is not None
    out, err = process.stdout.read(), log.read_text()
    assert process.returncode == 0, err
    summary = json.loads(out)
    assert summary["result"]["step"] == 120
    assert wire.cuts > 2
    assert "connection lost" in err
    mine = re.compile(r"\d\d:\d\d:\d\d job .*\n")  # what the submitter says itself
    assert mine.sub("", err) == ask(server, f"{summary['job']}/logs")["logs"]


@pytest.mark.full
@pytest.mark.usefixtures("token")
def test_ctrl_c_leaves_the_job_and_the_same_command_finds_it(
    server: str, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ERA_WORD", "a-word-that-stays-hidden")
    data = str(tiny_data / "train")
    arguments = [f"run.root={tmp_path}", "run.name=long", f"data.train={data}"]
    arguments += ["train.steps=100000", "scaling.workers=1", "tracking.wandb=disabled"]
    command = ["--address", server, "--env", "ERA_WORD", "train", *arguments]
    first = start(*command)
    job = _wait_for_line(first, r"job (era-train-\w+) sent")
    _wait_for_line(first, r"step (\d+) of")
    first.send_signal(signal.SIGINT)
    _, err = first.communicate(timeout=60)
    assert first.returncode == 130
    assert f"job {job} continues without this command" in err
    found = ask(server, job)
    assert found["status"] == "RUNNING"
    assert found["runtime_env"]["env_vars"]["ERA_WORD"].startswith("a-word")
    assert "a-word" not in err + found["entrypoint"]

    code, _, err = submit(*command, "train.steps=7")
    assert code == 2
    assert f"job {job} works on it with other arguments" in err

    second = start("--stop-on-exit", *command)
    assert _wait_for_line(second, r"job (\S+) does this already") == job
    second.terminate()
    _, err = second.communicate(timeout=150)
    assert second.returncode == 143, err
    assert ask(server, job)["status"] == "STOPPED", err
    assert list((tmp_path / "long" / "checkpoints").glob("*/COMMIT"))  # it had the time to save


@pytest.mark.full
@pytest.mark.usefixtures("token")
def test_a_working_directory_travels(server: str, tiny_pairs: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_pairs, tmp_path / "here" / "pairs")
    arguments = ["preprocess", "--dataset", "dpdd", "--source", "pairs"]
    arguments += ["--dest", str(tmp_path / "out"), "--address", server]  # after the verb, too
    code, _, err = submit(*arguments)
    assert code == 2
    assert "source=pairs is relative to this folder" in err
    code, _, err = submit(*arguments, "--working-dir", str(tmp_path / "here"))
    assert code == 0, err
    assert (tmp_path / "out" / "train" / "manifest.json").exists()


def _wait_for_line(process: subprocess.Popen[str], pattern: str) -> str:
    assert process.stderr is not None
    for line in process.stderr:
        found = re.search(pattern, line)
        if found:
            return found[1]
    raise AssertionError(f"no line like {pattern}")
