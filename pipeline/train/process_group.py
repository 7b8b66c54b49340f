"""How torch's process group is formed: as Ray does it, or without any port open to the network."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.train.torch import TorchConfig
from ray.train.torch.config import (
    _set_torch_distributed_env_vars,
    _setup_torch_process_group,
    _TorchBackend,
)

from pipeline.cluster import on_loopback


def torch_config(gpu: bool, folder: str) -> TorchConfig:
    """The process group of a run on the cluster that this process has joined.

    Args:
        gpu: whether workers compute on GPUs.
        folder: of the driver, for a file in which workers on this machine find each other.
    """
    backend = "nccl" if gpu else "gloo"
    return FileConfig(backend, folder=folder) if on_loopback() else TorchConfig(backend)


@dataclass
class FileConfig(TorchConfig):
    """Workers on one machine meet through a file.

    Through an address, rank 0 would listen on all interfaces of the machine, without a password.
    """

    folder: str = ""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        """What Ray Train calls as a group of workers starts."""
        return FileBackend


class FileBackend(_TorchBackend):
    """Ray's backend, except for how the ranks find each other."""

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        """Form the group; Ray Train calls it for each new group of workers."""
        import ray

        assert isinstance(backend_config, FileConfig)
        # A new name for each group: a killed one leaves its file behind.
        file = Path(backend_config.folder) / f"ranks-{secrets.token_hex(8)}"
        worker_group.execute(_set_torch_distributed_env_vars)
        size = len(worker_group)
        joining = [
            worker_group.execute_single_async(
                rank,
                _setup_torch_process_group,
                backend=backend_config.backend,
                world_rank=rank,
                world_size=size,
                init_method=f"file://{file}",
                timeout_s=backend_config.timeout_s,
            )
            for rank in range(size)
        ]
        ray.get(joining)
