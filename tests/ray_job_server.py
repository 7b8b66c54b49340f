"""A Ray cluster of one node with its job server and a token, and a wire to it that can be cut."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

TOKEN = "only-for-this-session-0123456789abcdef"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def ray_job_server(folder: Path, environment: dict[str, str]) -> Iterator[str]:
    """Yield the job server's address; `ray start --block` ends with the block."""
    port, dashboard = free_port(), free_port()
    ray = str(Path(sys.executable).with_name("ray"))
    command = [ray, "start", "--head", "--block", f"--port={port}", f"--temp-dir={folder}"]
    command += ["--include-dashboard=true", f"--dashboard-port={dashboard}", "--num-cpus=2"]
    command += [f"--dashboard-agent-listen-port={free_port()}", "--object-store-memory=100000000"]
    command += [f"--ray-client-server-port={free_port()}"]
    command += ["--min-worker-port=0", "--max-worker-port=0"]
    clean = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    clean["PATH"] = f"{Path(sys.executable).parent}:{clean['PATH']}"
    clean |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "RAY_USAGE_STATS_ENABLED": "0"}
    clean |= {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0", **environment}
    process = subprocess.Popen(
        command, env=clean, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    address = f"http://127.0.0.1:{dashboard}"
    try:
        _wait_for(address, process)
        yield address
    finally:
        process.terminate()
        process.wait(timeout=60)


def _wait_for(address: str, process: subprocess.Popen[bytes]) -> None:
    asked = urllib.request.Request(
        f"{address}/api/jobs/", headers={"Authorization": f"Bearer {TOKEN}"}
    )
    for _ in range(600):
        assert process.poll() is None, "ray start ended at once"
        try:
            urllib.request.urlopen(asked, timeout=5)
            return
        except (urllib.error.HTTPError, OSError):
            time.sleep(0.2)
    raise AssertionError("the job server does not answer")


class Wire:
    """A TCP port that passes everything on, until it is cut; afterwards it works again."""

    def __init__(self, to: str) -> None:
        self.port = int(to.rpartition(":")[2])
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.open: list[socket.socket] = []
        self.cuts = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Break every connection."""
        self.cuts += 1
        while self.open:
            one = self.open.pop()
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self) -> None:
        while True:
            near, _ = self.listener.accept()
            far = socket.create_connection(("127.0.0.1", self.port))
            self.open += [near, far]
            for one, other in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(one, other), daemon=True).start()

    @staticmethod
    def _pump(one: socket.socket, other: socket.socket) -> None:
        try:
            while data := one.recv(65536):
                other.sendall(data)
            other.shutdown(socket.SHUT_WR)
        except OSError:
            pass
