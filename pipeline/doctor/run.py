"""Runs the checks that apply, in order; a check that fails itself becomes a finding."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from pipeline.cluster import address_of
from pipeline.doctor.dashboard import check_dashboard
from pipeline.doctor.finding import FAILURE, OK, Finding
from pipeline.doctor.machine import disks, gpus, packages, python, wandb
from pipeline.doctor.store import check_bucket, check_data
from pipeline.errors import UserError

Check = Callable[[], Iterator[Finding]]


def diagnose(
    address: str = "", bucket: str = "", data: str = "", workers: int = 0
) -> Iterator[Finding]:
    """Run every check that applies.

    Args:
        address: a Ray dashboard (http://...), where a job then checks bucket, data and cluster; or
            a cluster (HOST:PORT) to join. Empty: RAY_ADDRESS.
        bucket: URL of a folder to read, write and delete in.
        data: URL of a split whose shards are to be found and read.
        workers: ranks of the all-reduce; 0 means one per node, or per GPU.
    """
    address = address or address_of()
    checks: dict[str, Check] = {"python": python, "packages": packages}
    if address.startswith(("http://", "https://")):
        checks["ray jobs"] = lambda: check_dashboard(address, bucket, data, workers)
    else:
        checks |= {"disk": disks, "wandb": wandb}
        if bucket:
            checks["bucket"] = lambda: check_bucket(bucket)
        if data:
            checks["data"] = lambda: check_data(data)
        checks["ray"] = lambda: _cluster(address, workers)
    for name, check in checks.items():
        yield from guarded(name, check)


def guarded(name: str, check: Check) -> Iterator[Finding]:
    """The findings of a check; an error that it raises becomes one more."""
    try:
        yield from check()
    except UserError as error:
        yield Finding(name, FAILURE, str(error))
    except Exception as error:
        lines = str(error).split("\n")
        yield Finding(name, FAILURE, f"the check broke: {type(error).__name__}: {lines[0][:300]}")


def _cluster(address: str, workers: int) -> Iterator[Finding]:
    if not address:
        yield Finding("ray", OK, "no RAY_ADDRESS: training starts a cluster of its own here")
        yield from gpus()
        return
    from pipeline.cluster.joining import require_answer
    from pipeline.doctor.cluster import check_cluster

    require_answer(address, address)  # also where this process has joined a cluster already
    yield from check_cluster(address, workers)
