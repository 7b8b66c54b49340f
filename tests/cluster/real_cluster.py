"""A real cluster: whatever KUBECONFIG names, with KubeRay and the image in place.

The image is `era` in the nodes (ERA_IMAGE for another). Tests that need more of the cluster say so
by their marker and take commands from the environment: LOSE_NODE and RETURN_NODE for `lost_node`,
POLICY_ON and POLICY_OFF for `policy`.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
IMAGE = os.environ.get("ERA_IMAGE", "era")
# The session's own, before the other tests' fixtures hide it.
ENVIRONMENT = dict(os.environ)
KUBECTL = shutil.which("kubectl") or str(Path(sys.executable).with_name("kubectl"))
READY = 300  # seconds for what a loaded machine may take a while for


def kubectl(*arguments: str, given: str = "", check: bool = True) -> str:
    """Run kubectl in the namespace; return what it printed."""
    command = [KUBECTL, "--namespace", "era", *arguments]
    done = subprocess.run(
        command, input=given, env=ENVIRONMENT, text=True, capture_output=True, timeout=300
    )
    assert done.returncode == 0 or not check, f"{command}: {done.stderr}"
    return done.stdout


def command(name: str) -> None:
    """Run a command that the environment gives."""
    subprocess.run(ENVIRONMENT[name], shell=True, check=True, timeout=READY)


@contextmanager
def forwarded(what: str, port: int) -> Iterator[int]:
    """A port of this machine that leads to one in the cluster."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        mine = probe.getsockname()[1]
    command = [KUBECTL, "-n", "era", "port-forward", what, f"{mine}:{port}"]
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 60
        while socket.socket().connect_ex(("127.0.0.1", mine)):
            assert time.monotonic() < end, f"{what} can't be reached"
            time.sleep(0.2)
        yield mine
    finally:
        process.terminate()
        process.wait()


def secret(name: str, key: str) -> str:
    """A value of a secret."""
    return kubectl(
        "get", "secret", name, "-o", f'go-template={{{{index .data "{key}" | base64decode}}}}'
    )


def era(environment: dict[str, str], *arguments: str, log: bool = False) -> str:
    """Run `era` here; return its standard output, or its log."""
    command = [sys.executable, "-m", "pipeline", *arguments]
    done = subprocess.run(
        command, env=environment, cwd=ROOT, text=True, capture_output=True, timeout=900
    )
    assert done.returncode == 0, done.stderr
    return done.stderr if log else done.stdout


class Submitted:
    """An attached `era submit train --kubernetes`, and the RayJob that it follows."""

    def __init__(
        self, folder: Path, name: str, *overrides: str, image: str = IMAGE, overlay: str = "local"
    ) -> None:
        self.name, self.rayjob = name, f"era-{name}"
        self.log = folder / f"{secrets.token_hex(3)}.log"
        command = ["submit", "train", "--kubernetes", "--json"]
        command += ["--overlay", overlay, "--image", image, "--config", "tiny", f"run.name={name}"]
        command += ["run.root=s3://era/runs", "data.train=s3://era/shards/train"]
        self.command = [*command, "scaling.workers=1", *overrides]
        with self.log.open("a") as log:
            era = [sys.executable, "-m", "pipeline", *self.command]
            self.process = subprocess.Popen(
                era, env=ENVIRONMENT, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT
            )

    def until(self, text: str, seconds: int = READY, times: int = 1) -> None:
        """Wait until the log has shown a text as often as that."""
        end = time.monotonic() + seconds
        while self.log.read_text().count(text) < times:
            assert time.monotonic() < end, f"never came: {text}\n{self.log.read_text()[-3000:]}"
            time.sleep(1)

    def trains(self, times: int = 1) -> None:
        """Wait until a driver's first steps are shown."""
        self.until("training s3://era/runs/", times=times)
        time.sleep(10)  # some steps

    def status(self, field: str) -> str:
        """A field of the RayJob's status; empty where it has none."""
        path = f"jsonpath={{.status.{field}}}"
        return kubectl("get", "rayjob", self.rayjob, "-o", path, check=False)

    def pod(self, kind: str) -> str:
        """The pod of a kind, head or worker."""
        chosen = f"ray.io/node-type={kind},ray.io/cluster={self.status('rayClusterName')}"
        return kubectl("get", "pods", "-l", chosen, "-o", "name").split()[0]

    def end(self) -> None:
        """Leave it, and remove the RayJob and its pods."""
        self.process.kill()
        self.process.wait()
        chosen = f"ray.io/cluster={self.status('rayClusterName')}"
        kubectl("delete", "rayjob", self.rayjob, "--ignore-not-found", "--wait=true")
        kubectl("wait", "pod", "-l", chosen, "--for=delete", f"--timeout={READY}s", check=False)


def checkpoints(bucket: dict[str, str], one: Submitted) -> list[int]:
    """Steps of a run's complete checkpoints."""
    text = era(bucket, "runs", "show", f"s3://era/runs/{one.name}", "--json")
    return sorted(checkpoint["step"] for checkpoint in json.loads(text)["checkpoints"])
