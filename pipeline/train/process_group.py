"""How torch's process group is formed: through an address, or without any port open to the network.

Ray's own `TorchConfig` imports torch where it is made and where the group is watched. A run's
driver and its controller compute nothing: without torch each takes a quarter of the memory.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.train.backend import Backend, BackendConfig

from pipeline.cluster import on_loopback
from pipeline.imports import uncollected

TIMEOUT_SECONDS = 1800  # of one collective
LEAVE_SECONDS = 30  # for the ranks to leave the group


@dataclass
class ProcessGroupConfig(BackendConfig):
    """A run's process group.

    Attributes:
        backend: of torch, nccl or gloo.
        folder: of the driver, where the workers of one machine meet through a file; empty = through
            an address of rank 0, which then listens on all interfaces without a password.
    """

    backend: str
    folder: str = ""

    @property
    def backend_cls(self) -> type[Backend]:
        """What Ray Train calls as a group of workers starts and ends."""
        return ProcessGroup

    def to_dict(self) -> dict[str, Any]:
        """What Ray shows of it."""
        return {"backend": self.backend}


def process_group(gpu: bool, folder: str) -> ProcessGroupConfig:
    """The process group of a run on the cluster that this process has joined.

    Args:
        gpu: whether workers compute on GPUs.
        folder: of the driver, for a file in which workers on this machine find each other.
    """
    return ProcessGroupConfig("nccl" if gpu else "gloo", folder if on_loopback() else "")


class ProcessGroup(Backend):
    """Forms the group on the workers; runs in Ray Train's controller."""

    share_cuda_visible_devices = True

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        """Form the group; Ray Train calls it for each new group of workers."""
        import ray

        size = len(worker_group)
        method = _meeting_point(worker_group, backend_config.folder)
        ray.get(
            [
                worker_group.execute_single_async(
                    rank, _join, backend_config.backend, rank, size, method
                )
                for rank in range(size)
            ]
        )

    def on_shutdown(self, worker_group: Any, backend_config: Any) -> None:
        """Leave the group, within a bounded time."""
        import ray

        leaving = worker_group.execute_async(_leave, len(worker_group) > 1)
        ray.wait(leaving, num_returns=len(leaving), timeout=LEAVE_SECONDS)


def _meeting_point(worker_group: Any, folder: str) -> str:
    """The URL at which the ranks find each other; a new one for each group."""
    if folder:  # a killed group leaves its file behind
        return f"file://{Path(folder) / f'ranks-{secrets.token_hex(8)}'}"
    from ray._common.network_utils import build_address  # type: ignore[attr-defined]
    from ray.train._internal.utils import get_address_and_port

    return f"tcp://{build_address(*worker_group.execute_single(0, get_address_and_port))}"


def _join(backend: str, rank: int, size: int, method: str) -> None:
    """On a worker: as Ray's own backend does it."""
    with uncollected():
        from ray.train.torch import config

    config._set_torch_distributed_env_vars()
    config._setup_torch_process_group(backend, rank, size, method, TIMEOUT_SECONDS)


def _leave(destroy: bool) -> None:
    """On a worker."""
    from ray.train.torch import config

    config._shutdown_torch(destroy_process_group=destroy)
