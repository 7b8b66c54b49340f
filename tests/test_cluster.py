"""Ray clusters of our own, and addresses at which none answers."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from conftest import S3Server
from faulty_proxy import faulty_proxy
from small_run import assert_same_run, config_of
from test_chain import moved, start, wait_for_step

from pipeline import storage
from pipeline.checkpoint import CheckpointStore
from pipeline.cluster import Wait, environment, job_client, joining, wait_for, waiting
from pipeline.errors import UserError
from pipeline.runfolder import RunFolder
from pipeline.train import train

SECRETS = {
    "AWS_ACCESS_KEY_ID": "an-access-key-1",
    "AWS_SECRET_ACCESS_KEY": "a-secret-key-2",
    "WANDB_API_KEY": "a-wandb-key-3",
}
LOOPBACK = ("0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000")


def family(root: int) -> list[int]:
    """A process and all its descendants."""
    children: dict[int, list[int]] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended meanwhile
            pid, _, rest = status.read_text(errors="replace").partition(" ")
            parent = int(rest.rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(pid))
    found, left = [], [root]
    while left:
        found.append(left.pop())
        left += children.get(found[-1], [])
    return found


def listening(root: int) -> list[str]:
    """Addresses (as in /proc/net/tcp) at which a process or a descendant listens."""
    sockets = set()
    for pid in family(root):
        for link in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                sockets.add(str(link.readlink()))
            except OSError:  # it has ended meanwhile
                continue
    rows = [
        line.split()
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]
    ]
    return [row[1] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in sockets]


def command_lines(root: int) -> str:
    texts = []
    for pid in family(root):
        try:
            texts.append(Path(f"/proc/{pid}/cmdline").read_text())
        except OSError:
            continue
    return "\n".join(texts)


LOCAL = """
import json, os, signal, stat, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_cluster import command_lines, listening
from pipeline.cluster import connected, has_cluster

def terminate(number, frame):
    raise SystemExit(99)

signal.signal(signal.SIGTERM, terminate)
before = dict(os.environ)
found = {}
with connected(1):
    import ray

    @ray.remote(num_cpus=0)
    class Actor:
        def folder(self):
            return os.environ.get("RAY_AUTH_TOKEN_PATH")

    token = Path(ray.get(Actor.remote().folder.remote()))
    found["token"] = token.read_text()
    found["mode"] = stat.S_IMODE(token.stat().st_mode)
    found["listening"] = listening(os.getpid())
    found["commands"] = command_lines(os.getpid())
    found["session"] = ray._private.worker._global_node.get_session_dir_path()
found["environment"] = [k for k in {**before, **os.environ} if before.get(k) != os.environ.get(k)]
found["handler"] = signal.getsignal(signal.SIGTERM) is terminate
found["cluster"] = has_cluster()
print(json.dumps(found))
"""


def test_a_local_cluster_is_private_and_leaves_nothing_behind(tmp_path: Path) -> None:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", LOCAL, str(Path(__file__).parent)],
        env={**kept, **SECRETS},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found["listening"]) > 5
    assert {address.partition(":")[0] for address in found["listening"]} <= set(LOOPBACK)
    assert len(found["token"]) == 64
    assert found["mode"] == 0o600
    secrets = [found["token"], *SECRETS.values()]
    assert not [secret for secret in secrets if secret in found["commands"]]
    assert not holding(Path(found["session"]), secrets)
    by_ray = {"RAY_CLIENT_MODE", "PYTHONBREAKPOINT"}  # of no consequence
    assert set(found["environment"]) <= by_ray
    assert found["handler"]
    assert not found["cluster"]


def holding(folder: Path, secrets: list[str]) -> list[str]:
    """The files below a folder that hold one of the secrets."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    return [str(path) for path in files if any(s.encode() in path.read_bytes() for s in secrets)]


@pytest.mark.full
def test_secrets_and_ports_of_a_whole_run(tiny_data: Path, tmp_path: Path) -> None:
    """Two ranks: torch's process group listens on the loopback interface only, too."""
    config = config_of(tiny_data, tmp_path, "private", "train.steps=400", "train.validate_every=0")
    process = start(config, tmp_path / "driver", RAY_ADDRESS="", **SECRETS)
    wait_for_step(tmp_path / "private", 3, process)
    assert {a.partition(":")[0] for a in listening(process.pid)} <= set(LOOPBACK)
    commands = command_lines(process.pid)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) == 143
    assert "ray::" in commands
    useless = "PlacementGroupCleaner", "DatasetManager"
    assert not [name for name in useless if name in commands]
    assert not [secret for secret in SECRETS.values() if secret in commands]


@pytest.mark.full
def test_a_killed_controller_does_not_hold_the_cpus(tiny_data: Path, tmp_path: Path) -> None:
    """On a local cluster only the driver removes the placement group that it leaves."""
    steps = "train.steps=4000", "train.validate_every=0", f"scaling.workers={os.cpu_count()}"
    batch = f"train.global_batch={max(4, os.cpu_count() or 1)}"
    config = config_of(tiny_data, tmp_path, "headless", *steps, batch)
    process = start(config, tmp_path / "driver", RAY_ADDRESS="")
    wait_for_step(tmp_path / "headless", 3, process)
    victims = []
    for pid in family(process.pid):
        with suppress(OSError):  # a process that has just ended
            if "ray::TrainController" in Path(f"/proc/{pid}/cmdline").read_text():
                victims.append(pid)
    assert len(victims) == 1
    os.kill(victims[0], signal.SIGKILL)
    assert process.stderr is not None
    seen = any("resumed at step" in line for line in iter(process.stderr.readline, ""))
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert seen


@pytest.mark.full
def test_a_hung_machine_that_wakes_up_changes_nothing(
    undisturbed: dict[str, Any], s3_server: S3Server, tiny_data: Path, tmp_path: Path
) -> None:
    """It stops with a COMMIT on its way; the same command ends elsewhere before it goes on."""
    on_its_way, go_on = threading.Event(), threading.Event()

    def hang(method: str, path: str) -> str:
        if method == "PUT" and "step-00000009/COMMIT" in path:
            on_its_way.set()
            go_on.wait(300)
        return ""

    shutil.copytree(tiny_data, s3_server.folder / s3_server.bucket / "shards")
    shards, runs = storage.join(s3_server.url, "shards"), storage.join(s3_server.url, "runs")
    config = moved(config_of(Path(), Path(), "hung"), runs, shards, tmp_path / "cache")
    with faulty_proxy(s3_server.endpoint, hang) as proxy:
        older = start(config, tmp_path, AWS_ENDPOINT_URL=proxy.endpoint, RAY_ADDRESS="")
        assert on_its_way.wait(200)
        asleep = family(older.pid)
        for pid in asleep:
            os.kill(pid, signal.SIGSTOP)
        newer = train(config)
        before = CheckpointStore(newer["run"]).folder.committed()
        for pid in asleep:
            os.kill(pid, signal.SIGCONT)
        go_on.set()
        _, log = older.communicate(timeout=200)
    assert older.returncode == 2 and "attempt 2 has taken it over" in log, log
    folder = RunFolder(newer["run"])
    assert set(before) <= set(folder.committed())
    for checkpoint in folder.checkpoints():
        checkpoint.verify()
    local = s3_server.folder / s3_server.bucket / "runs" / "hung"
    assert_same_run(undisturbed, {**newer, "run": str(local)})


@pytest.mark.full
@pytest.mark.parametrize("seconds", [4, 8, 14])
def test_sigterm_is_143_at_any_time(seconds: int, tiny_data: Path, tmp_path: Path) -> None:
    config = config_of(tiny_data, tmp_path, "early", "train.steps=4000", "train.validate_every=0")
    process = start(config, tmp_path / "driver", RAY_ADDRESS="")
    time.sleep(seconds)
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=180)
    assert process.returncode == 143, log
    assert "Traceback" not in log


def test_a_dead_address_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "ANSWER_SECONDS", 1.0)
    with pytest.raises(UserError, match=r"x: no Ray cluster answers there \(Connection refused\)"):
        joining.require_answer("127.0.0.1:9", "x")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(UserError, match="the port is open, but no Ray head speaks there"):
            joining.require_answer(address, "x")
    for odd in ("ray..head:6379", f"{'h' * 70}:6379", "host:\u00b2"):
        with pytest.raises(UserError, match="x: no Ray cluster answers there"):
            joining.require_answer(odd, "x")
    with pytest.raises(UserError, match="only HOST:PORT of a cluster can be joined"):
        joining.require_answer("http://127.0.0.1:8265", "x")


def test_job_servers_that_are_none() -> None:
    with pytest.raises(UserError, match=r"answers there \(Connection refused\); check the address"):
        job_client("http://127.0.0.1:9")
    with pytest.raises(UserError, match="no credential belongs there"):
        job_client("http://user:word@127.0.0.1:9")


def test_waits_say_what_for_and_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(waiting, "SAY_SECONDS", 0.05)
    monkeypatch.setattr(waiting.log, "propagate", True)
    caplog.set_level("INFO", "era")
    with pytest.raises(TimeoutError, match="waited 0 s for Godot; go home"):
        wait = Wait("Godot", 0.2, "go home")
        while True:
            wait.check()
            time.sleep(0.01)
    assert "waiting for Godot" in caplog.text
    answers = iter([None, None, "here"])
    assert wait_for(lambda: next(answers), "an answer", 60, pause=0.01) == "here"


def test_the_environment_is_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ERA_TEST_SET", "before")
    monkeypatch.delenv("ERA_TEST_UNSET", raising=False)
    with pytest.raises(KeyError), environment(ERA_TEST_SET=None, ERA_TEST_UNSET="now"):
        assert "ERA_TEST_SET" not in os.environ
        assert os.environ["ERA_TEST_UNSET"] == "now"
        raise KeyError
    assert os.environ["ERA_TEST_SET"] == "before"
    assert "ERA_TEST_UNSET" not in os.environ
