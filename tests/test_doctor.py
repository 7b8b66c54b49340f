"""`era doctor` on real clusters and a real S3 server: what is well, each failure with its cure."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from conftest import S3Server

from era import cost, named_config
from pipeline import storage
from pipeline.doctor import diagnose
from pipeline.doctor.cluster import check_cluster, gpu_of_a_node
from pipeline.doctor.dashboard import check_dashboard
from pipeline.doctor.finding import Finding
from pipeline.doctor.machine import _unusable, disks, wandb
from pipeline.doctor.run import guarded
from pipeline.doctor.store import check_bucket, check_data
from pipeline.errors import UserError

DEAD = "127.0.0.1:9"  # a port without a listener


def by_check(findings: Any) -> dict[str, Finding]:
    return {finding.check: finding for finding in findings}


def the_failure(findings: Any) -> str:
    """The one line of the one failure."""
    failures = [finding.text for finding in findings if finding.state == "failure"]
    assert len(failures) == 1, failures
    assert "\n" not in failures[0] and "Traceback" not in failures[0]
    return failures[0]


def copied(split: Path, url: str) -> None:
    for path in split.iterdir():
        storage.upload(path, storage.join(url, path.name))


def test_bucket_and_data_that_are_well(s3_server: S3Server, tiny_data: Path) -> None:
    copied(tiny_data / "train", f"{s3_server.url}/train")
    found = by_check([*check_bucket(s3_server.url), *check_data(f"{s3_server.url}/train")])
    assert {finding.state for finding in found.values()} == {"ok"}
    assert "multipart and delete" in found["bucket"].text
    assert "all there" in found["data"].text and "MB/s" in found["data"].text
    assert "from the S3 server's" in found["clock"].text
    assert storage.list_names(s3_server.url) == ["train"]  # nothing of ours stays


def test_damaged_and_missing_shards(s3_server: S3Server, tiny_data: Path) -> None:
    url = f"{s3_server.url}/train"
    copied(tiny_data / "train", url)
    shards = [name for name in storage.list_names(url) if name.endswith(".tar")]
    for name in shards:
        whole = bytearray(storage.read_bytes(storage.join(url, name)))
        whole[len(whole) // 2] ^= 1
        storage.write_bytes(storage.join(url, name), bytes(whole))
    assert "its sha256 is not the manifest's; run `era verify" in the_failure(check_data(url))
    storage.delete(storage.join(url, shards[0]))
    line = the_failure(check_data(url))
    assert f"missing or of another size: {shards[0]}; preprocess again" in line


def test_bucket_failures_are_one_line_without_the_secret(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def line(url: str) -> str:
        return the_failure(guarded("bucket", lambda: check_bucket(url)))

    assert "no such bucket; create it" in line("s3://never-made/x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-but-secret")
    assert "the secret key does not fit the access key; check AWS_" in line(s3_server.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "stranger")
    refused = line(s3_server.url)
    assert "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in refused
    assert "wrong-but-secret" not in refused


def test_wandb_that_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "a-secret-key")
    monkeypatch.setenv("WANDB_BASE_URL", f"http://{DEAD}")
    (finding,) = wandb()
    assert finding.state == "warning"
    assert "is silent; check WANDB_BASE_URL" in finding.text
    assert "a-secret-key" not in finding.text


def test_settings_that_lead_nowhere_are_findings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "a-secret-key")
    monkeypatch.setenv("WANDB_BASE_URL", "http://my host/")
    assert [finding.state for finding in wandb()] == ["warning"]
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "none" / "there"))
    monkeypatch.setenv("ERA_CACHE_DIR", str(tmp_path / "file"))
    found = {finding.check: finding for finding in disks()}
    assert "file is a file" in next(disks()).text
    assert str(tmp_path) in found["ray's disk"].text


@pytest.mark.parametrize(
    ("address", "cure"),
    [
        (DEAD, "no Ray cluster answers there (Connection refused); check the address"),
        (
            f"http://{DEAD}",
            "no Ray job server answers there (Connection refused); check the address",
        ),
        ("ray://127.0.0.1:10001", "only HOST:PORT of a cluster can be joined, such as HOST:6379"),
    ],
)
def test_dead_addresses(address: str, cure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert cure in the_failure(diagnose(address))


def test_nodes_and_an_all_reduce_that_measured_nothing(ray_cluster: str) -> None:
    found = by_check(check_cluster(ray_cluster, 1))
    states = {check: finding.state for check, finding in found.items()}
    assert "3 nodes" in found["ray"].text
    assert {states[check] for check in ("ray", "trial", "versions", "clocks")} == {"ok"}
    assert states["all-reduce"] == "warning"  # never ok without a measurement
    assert "nothing to measure between; give --workers" in found["all-reduce"].text


def test_another_ray_is_named(ray_cluster: str) -> None:
    script = (
        "import ray; ray.__version__ = '2.59.0'\n"
        "from pipeline.doctor import diagnose\n"
        f"print([f.text for f in diagnose({ray_cluster!r}) if f.state == 'failure'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.count("Ray: 2.59.0") == 1
    assert "Version mismatch" in done.stdout and "Use the cluster's image" in done.stdout


def test_json_counts_and_exit_code(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pipeline", "doctor", "--json", "--address", DEAD]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    found = json.loads(done.stdout)
    assert found["failures"] == 1
    assert {"python", "packages", "disk", "wandb", "ray"} <= {c["check"] for c in found["checks"]}


def test_gpu_that_is_offered_but_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "check the driver and torch's CUDA wheel" in the_failure(gpu_of_a_node())


def test_a_driver_that_torch_cannot_use(tmp_path: Path) -> None:
    told = tmp_path / "version"
    told.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19\n")
    for cuda, reason in (
        ("13.0", "driver 580.65.06 for CUDA 13.0, and this is 535.104.05"),
        ("12.8", "cannot use NVIDIA's driver 535.104.05"),
        (None, "install torch's CUDA wheel"),
    ):
        assert reason in _unusable(cuda, told)


@pytest.mark.parametrize("place", ["bucket", "data"])
def test_no_credential_is_sent_to_a_dashboard(place: str) -> None:
    urls = {"bucket": "", "data": "", place: "s3://key:hidden-word@bucket/x"}
    with pytest.raises(UserError, match="with credentials") as refused:
        list(check_dashboard("http://127.0.0.1:9", urls["bucket"], urls["data"], 0))
    assert "hidden-word" not in str(refused.value)


@pytest.mark.full
def test_through_a_dashboard(ray_cluster: str, s3_server: S3Server, tiny_data: Path) -> None:
    """From outside the cluster, a job runs the checks there."""
    from ray.dashboard.utils import ray_address_to_api_server_url

    copied(tiny_data / "train", f"{s3_server.url}/train")
    address = ray_address_to_api_server_url(ray_cluster)
    command = [sys.executable, "-m", "pipeline", "doctor", "--json", "--address", address]
    command += ["--bucket", s3_server.url, "--data", f"{s3_server.url}/train"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    found = {check["check"]: check for check in json.loads(done.stdout)["checks"]}
    for name in ("ray jobs", "cluster: bucket", "cluster: data", "cluster: versions"):
        assert found[name]["state"] == "ok", found
    text = found["cluster: all-reduce"]["text"]
    size = 4 * cost(named_config("base"), 64, 64).parameters / 1e6
    assert re.search(rf"3 workers on 3 nodes, {size:.1f} MB in [0-9.]+ ms: [0-9.]+ GB/s", text)
    rates = re.findall(r"([0-9.]+) (?:ms|GB/s)", text)
    assert all(float(rate) > 0 for rate in rates)


@pytest.mark.full
def test_a_token_that_does_not_fit() -> None:
    from ray_job_server import ray_job_server

    with (
        # Ray's sockets want short paths; what it still writes while it ends is left to it.
        tempfile.TemporaryDirectory(prefix="era-job-", ignore_cleanup_errors=True) as folder,
        ray_job_server(Path(folder), {}) as address,
    ):
        clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        command = [sys.executable, "-m", "pipeline", "doctor", "--json", "--address", address]
        done = subprocess.run(
            command,
            env={**clean, "RAY_AUTH_TOKEN": "another-token-0123456789"},
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
    assert done.returncode == 2
    checks = json.loads(done.stdout)["checks"]
    line = the_failure(Finding(**check) for check in checks)
    assert "wants another token" in line and "set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH" in line
    assert "another-token" not in line


def test_no_finding_shows_a_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://user:PassSecret@127.0.0.1:9")
    (finding,) = wandb()
    assert "127.0.0.1:9 is silent" in finding.text
    assert "PassSecret" not in finding.text
