"""Times the all-reduce of gradients, for which every training step waits."""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Any

from pipeline.doctor.finding import FAILURE, OK, WARNING, Finding

MOST = 8  # ranks, unless asked for
ROUNDS = 7
SLOW = 0.125  # GB/s and worker: a link of 1 Gbit/s
LONGEST_SECONDS = 180  # seconds, for workers to start and to find each other


def check_all_reduce(cpus: float, gpus: int, nodes: int, workers: int) -> Iterator[Finding]:
    """All-reduce gradients of the size `base` as training does: same backend, same placement."""
    workers = workers or min(gpus or min(nodes, int(cpus)), MOST)
    if workers < 2:
        cure = "give --workers 2 or more, which also makes an autoscaler start nodes"
        text = f"{nodes} nodes, {cpus:g} CPUs and {gpus} GPUs now: nothing to measure between"
        yield Finding("all-reduce", WARNING, f"{text}; {cure}")
        return
    measured = _measured(workers, gpus > 0)
    if isinstance(measured, str):
        cure = (
            f"are {workers} {'GPUs' if gpus else 'CPUs'} free (`ray status`)? then let workers "
            "reach each other on all ports (NetworkPolicy), and name the network interface in "
            f"{'NCCL' if gpus else 'GLOO'}_SOCKET_IFNAME"
        )
        yield Finding("all-reduce", FAILURE, f"{workers} workers: {measured}; {cure}")
        return
    yield _judge(workers, **measured)


def _judge(workers: int, size: int, seconds: float, places: int, right: bool) -> Finding:
    rate = 2 * (workers - 1) / workers * size / seconds / 1e9
    text = (
        f"{workers} workers on {places} nodes, {size / 1e6:.1f} MB in {seconds * 1e3:.1f} ms: "
        f"{rate:.2f} GB/s through each worker"
    )
    if not right:
        return Finding("all-reduce", FAILURE, f"{text}, and the sum is wrong; replace the network")
    if rate < SLOW:
        cure = "every step waits this long: take a faster network, or fewer and larger workers"
        return Finding("all-reduce", WARNING, f"{text}; {cure}")
    return Finding("all-reduce", OK, text)


def _measured(workers: int, gpu: bool) -> dict[str, Any] | str:
    """What rank 0 measured, or why it measured nothing."""
    outcome: list[dict[str, Any] | str] = []
    thread = threading.Thread(target=_fit, args=(workers, gpu, outcome), daemon=True)
    thread.start()
    thread.join(LONGEST_SECONDS)
    return outcome[0] if outcome else f"no answer within {LONGEST_SECONDS} s"


def _fit(workers: int, gpu: bool, outcome: list[dict[str, Any] | str]) -> None:
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    work: Any = _measure  # Ray's types know neither what it returns nor `return_value`
    try:
        with tempfile.TemporaryDirectory(prefix="era-doctor-") as scratch:
            result: Any = TorchTrainer(
                work,
                torch_config=TorchConfig(backend="nccl" if gpu else "gloo", timeout_s=60),
                scaling_config=ScalingConfig(
                    num_workers=workers, use_gpu=gpu, placement_strategy="SPREAD"
                ),
                run_config=RunConfig(name="doctor", storage_path=scratch),
            ).fit()
        outcome.append(result.return_value or "rank 0 returned nothing")
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        outcome.append(lines[-1][:300])


def _measure() -> dict[str, Any]:
    """Run on every rank: check the sums and take the median of the times."""
    import torch
    import torch.distributed as dist

    import era

    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    count = sum(p.numel() for p in era.ErA(era.named_config("base")).parameters())
    gradient, seconds = torch.empty(count, device=device), []
    for _ in range(ROUNDS):
        gradient.fill_(dist.get_rank() + 1)
        dist.barrier()
        began = time.monotonic()
        dist.all_reduce(gradient)
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.monotonic() - began)
    total = dist.get_world_size() * (dist.get_world_size() + 1) / 2
    return {
        "size": count * gradient.element_size(),
        "seconds": statistics.median(seconds),
        "places": _nodes(),
        "right": bool((gradient == total).all()),
    }


def _nodes() -> int:
    """The number of nodes that hold ranks."""
    import ray
    import torch.distributed as dist

    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, ray.get_runtime_context().get_node_id())
    return len(set(found))
