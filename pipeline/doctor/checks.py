"""The checks, one small function each; every one yields findings and never raises."""

from __future__ import annotations

import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path
from typing import Any

from pipeline import storage
from pipeline.errors import UserError

OK, WARNING, FAILURE = "ok", "warning", "failure"
MULTIPART = 48 << 20  # bytes: more than one part of an upload
LEAST_DISK, LEAST_SHARED = 20, 2  # GB


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, how it is, and what cures it."""

    check: str
    state: str
    text: str


def diagnose(address: str = "", bucket: str = "", data: str = "") -> Iterator[Finding]:
    """Run every check that applies.

    Args:
        address: of a Ray dashboard (http://...) or of a cluster; else RAY_ADDRESS, if set.
        bucket: URL of a folder to read, write and delete in.
        data: URL of a split, whose shards are read for their speed.
    """
    checks: list[Callable[[], Iterator[Finding]]] = [_python, _packages, _disk, _wandb]
    checks.append(lambda: _cluster(address))
    if bucket:
        checks.append(lambda: _bucket(bucket))
    if data:
        checks.append(lambda: _data(data))
    for check in checks:
        try:
            yield from check()
        except Exception as error:  # a check that breaks is a finding, not an end
            name = getattr(check, "__name__", "check").strip("_<>")
            yield Finding(name, FAILURE, f"{type(error).__name__}: {' '.join(str(error).split())}")


def _python() -> Iterator[Finding]:
    found = platform.python_version()
    good = tuple(map(int, platform.python_version_tuple()[:2])) >= (3, 11)
    yield Finding("python", OK if good else FAILURE, found if good else f"{found}; needs 3.11")


def _packages() -> Iterator[Finding]:
    """The installed versions against the lock, where it is at hand."""
    lock = _lock()
    if lock is None:
        yield Finding("packages", WARNING, "requirements.lock is not at hand: nothing compared")
        return
    wrong = []
    for line in lock.split():
        name, _, wanted = line.partition("==")
        try:
            found = version(name).partition("+")[0]
        except PackageNotFoundError:
            found = "missing"
        if found != wanted:
            wrong.append(f"{name} {found} instead of {wanted}")
    if wrong:
        shown = ", ".join(wrong[:5]) + (f" and {len(wrong) - 5} more" if len(wrong) > 5 else "")
        yield Finding("packages", WARNING, f"{shown}; pip install -r requirements.lock")
    else:
        yield Finding("packages", OK, "as in requirements.lock")


def _lock() -> str | None:
    packaged = files("pipeline") / "_requirements.lock"
    beside = Path(__file__).parents[2] / "requirements.lock"
    for place in (packaged, beside):
        if place.is_file():
            return place.read_text()
    return None


def _disk() -> Iterator[Finding]:
    from pipeline.data.cache import cache_folder

    folder = cache_folder("")
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free / 1e9
    state = OK if free >= LEAST_DISK else WARNING
    cure = "" if state == OK else "; set ERA_CACHE_DIR to a larger disk"
    yield Finding("disk", state, f"{free:.0f} GB free for the cache in {folder}{cure}")
    if Path("/dev/shm").exists():
        shared = shutil.disk_usage("/dev/shm").total / 1e9
        state = OK if shared >= LEAST_SHARED else WARNING
        cure = "" if state == OK else "; give the container more (--shm-size, or an emptyDir)"
        yield Finding("shared memory", state, f"{shared:.1f} GB{cure}")


def _wandb() -> Iterator[Finding]:
    if os.environ.get("WANDB_API_KEY"):
        yield Finding("wandb", OK, "a key is set: runs are mirrored online")
    else:
        yield Finding("wandb", OK, "no WANDB_API_KEY: runs stay offline (wandb sync sends them)")


def _cluster(address: str) -> Iterator[Finding]:
    if address.startswith("http"):
        yield from _dashboard(address)
        return
    if address:
        os.environ["RAY_ADDRESS"] = address
    if not os.environ.get("RAY_ADDRESS"):
        yield Finding("ray", OK, "no RAY_ADDRESS: training starts a cluster of its own here")
        return
    from pipeline.spread import join_cluster

    join_cluster()
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]
    has = ray.cluster_resources()
    processors, gpus = has.get("CPU", 0), has.get("GPU", 0)
    text = f"{len(nodes)} nodes, {processors:g} CPUs, {gpus:g} GPUs, Ray {ray.__version__}"
    yield Finding("ray", OK, text)
    yield from _versions(nodes)
    yield from _clocks(nodes)
    yield from _all_reduce(gpus > 0, min(len(nodes), 4), processors)


def _dashboard(address: str) -> Iterator[Finding]:
    import ray
    from ray.job_submission import JobSubmissionClient

    try:
        client = JobSubmissionClient(address)
        theirs = client.get_version()
    except (ConnectionError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        cure = "check the address, the port-forward, and RAY_AUTH_TOKEN"
        yield Finding("ray jobs", FAILURE, f"{address} does not answer ({reason}); {cure}")
        return
    yield Finding("ray jobs", OK, f"{address} answers (API {theirs}; Ray {ray.__version__} here)")


def _versions(nodes: list[dict[str, Any]]) -> Iterator[Finding]:
    """Python and Ray on every node against this process's."""
    import ray

    here = f"Python {platform.python_version()}, Ray {ray.__version__}"
    found = _on_nodes(nodes, _version_text)
    other = {name: text for name, text in found.items() if text != here}
    if other:
        listed = ", ".join(f"{name}: {text}" for name, text in other.items())
        yield Finding("versions", FAILURE, f"{listed}; here {here}: use the same image everywhere")
    else:
        yield Finding("versions", OK, f"{here} on every node")


def _clocks(nodes: list[dict[str, Any]]) -> Iterator[Finding]:
    began = time.time()
    found = _on_nodes(nodes, time.time)
    spread = max(abs(at - began) for at in found.values()) - (time.time() - began)
    state = OK if spread < 60 else WARNING
    cure = "" if state == OK else "; set the clocks (S3 refuses a skew of 15 minutes)"
    yield Finding("clock", state, f"nodes agree within {max(0.0, spread):.1f} s{cure}")


def _on_nodes(nodes: list[dict[str, Any]], work: Callable[[], Any]) -> dict[str, Any]:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    def on(node: str) -> Any:
        place = NodeAffinitySchedulingStrategy(node, soft=False)
        return ray.remote(work).options(num_cpus=0, scheduling_strategy=place).remote()

    tasks = {f"{n['NodeManagerAddress']}": on(n["NodeID"]) for n in nodes}
    return {name: ray.get(task, timeout=120) for name, task in tasks.items()}


def _version_text() -> str:
    import ray

    return f"Python {platform.python_version()}, Ray {ray.__version__}"


def _all_reduce(gpu: bool, workers: int, processors: float) -> Iterator[Finding]:
    """All-reduce the gradients of size base over some workers, as training would."""
    import tempfile

    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    workers = max(1, min(workers, int(processors)))
    results: list[float] = []
    with tempfile.TemporaryDirectory(prefix="era-doctor-") as scratch:
        TorchTrainer(
            _measure_all_reduce,
            train_loop_config={"file": f"{scratch}/rate"},
            torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
            scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpu),
            run_config=RunConfig(name="doctor", storage_path=scratch),
        ).fit()
        place = Path(scratch) / "rate"
        if place.exists():
            results.append(float(place.read_text()))
    text = f"{workers} workers" + (f", {results[0]:.2f} GB/s" if results else "")
    yield Finding("all-reduce", OK, f"20 MB over {text}")


def _measure_all_reduce(config: dict[str, Any]) -> None:
    import torch
    import torch.distributed as dist

    device = "cuda" if torch.cuda.is_available() and dist.get_backend() == "nccl" else "cpu"
    gradient = torch.ones(5_000_000, device=device)
    for _ in range(2):
        dist.all_reduce(gradient)
    began = time.monotonic()
    for _ in range(5):
        dist.all_reduce(gradient)
    if device == "cuda":
        torch.cuda.synchronize()
    rate = 5 * gradient.numel() * 4 / (time.monotonic() - began) / 1e9
    if dist.get_rank() == 0 and Path(config["file"]).parent.is_dir():  # on the driver's node only
        Path(config["file"]).write_text(str(rate))


def _bucket(url: str) -> Iterator[Finding]:
    """Write, read, multipart, delete."""
    place = storage.join(url, ".era-doctor")
    try:
        storage.write_bytes(place, b"era")
        readable = storage.read_bytes(place) == b"era"
        storage.delete(place)
        began = time.monotonic()
        with storage.scratch_folder() as folder:
            large = Path(folder) / "large"
            large.write_bytes(os.urandom(MULTIPART))
            storage.upload(large, place)
        rate = MULTIPART / (time.monotonic() - began) / 1e6
        storage.delete(place)
    except UserError as error:
        yield Finding("bucket", FAILURE, str(error))
        return
    state = OK if readable else FAILURE
    yield Finding("bucket", state, f"{url}: write, read, delete and multipart ({rate:.0f} MB/s)")


def _data(url: str) -> Iterator[Finding]:
    from pipeline.data.manifest import load_manifest

    try:
        manifest, _ = load_manifest(url)
        shard = manifest.shards[0]
        began = time.monotonic()
        count = min(shard.bytes, 64 << 20)
        storage.read_bytes(storage.join(url, shard.name), 0, count)
        rate = count / (time.monotonic() - began) / 1e6
    except UserError as error:
        yield Finding("data", FAILURE, str(error))
        return
    size = manifest.bytes / 1e9
    text = f"{url}: {manifest.samples} samples, {size:.2f} GB, read at {rate:.0f} MB/s"
    yield Finding("data", OK, text)
