"""What a checkpoint says about its origin, and how that differs from the present attempt."""

from __future__ import annotations

import platform
from typing import Any

import torch

from era import ErAConfig
from pipeline import __version__
from pipeline.config import TrainConfig
from pipeline.data.split import Split
from pipeline.errors import UserError
from pipeline.runfolder import frozen_hash


class Lineage:
    """The origin of the checkpoints that this attempt writes.

    Args:
        config: the run's configuration.
        model: the network's configuration.
        splits: training and validation data; None without validation.
        world_size: the number of ranks.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: ErAConfig,
        splits: tuple[Split, Split | None],
        world_size: int,
    ) -> None:
        self.config, self.model, self.world_size = config, model, world_size
        self.splits = dict(
            zip(("data_manifest_sha256", "val_manifest_sha256"), splits, strict=True)
        )

    def meta(self, step: int) -> dict[str, Any]:
        """`meta.json` of a checkpoint."""
        return {
            "step": step,
            "model": self.model.to_dict(),
            "frozen_sha256": frozen_hash(self.config),
            **{name: split and split.manifest_sha256 for name, split in self.splits.items()},
            "world_size": self.world_size,
            "threads": self.config.scaling.threads,
            "micro_batch": self.config.scaling.micro_batch,
            "machine": platform.machine(),
            "device": _device(self.config),
            "git": self.config.run.revision or None,
            "versions": {
                "era": __version__,
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
        }

    def refuse_other_data(self, meta: dict[str, Any], run_url: str) -> None:
        """Refuse to resume on other data than the checkpoint's.

        Raises:
            UserError: naming the split whose manifest has changed.
        """
        for name, split in self.splits.items():
            if split is not None and meta.get(name, split.manifest_sha256) != split.manifest_sha256:
                raise UserError(
                    f"{split.url}: the data is not what run {run_url} began with "
                    "(its manifest changed); train under another run.name"
                )

    def refuse_unequal_data(self, meta: dict[str, Any]) -> None:
        """Refuse to train where this rank sees other data than rank 0.

        Raises:
            UserError: naming the split and the node.
        """
        for name, split in self.splits.items():
            if split is not None and meta.get(name) != split.manifest_sha256:
                raise UserError(
                    f"{split.url}: other data on {platform.node()} than on rank 0's node (their "
                    "manifests differ); copy the same, or give a URL that all nodes share"
                )

    def changes(self, meta: dict[str, Any]) -> str:
        """What may change the bits since a checkpoint was written, in a line; empty if nothing."""
        changed = self.changed(meta)
        if not changed:
            return ""
        return (
            f"resumed under other conditions than the checkpoint's: {', '.join(changed)}; "
            "results may differ in the last digits from an undisturbed run's"
        )

    def changed(self, meta: dict[str, Any]) -> list[str]:
        """The conditions that may change the bits since a checkpoint was written, old -> new."""
        before, now = _flat(meta), _flat(self.meta(0))
        return [
            f"{name} {before[name]} -> {now[name]}"
            for name in now
            if before.get(name) not in (None, now[name])
        ]

    def changed_code(self, meta: dict[str, Any]) -> list[str]:
        """The same without settings, and on whatever machine this is: of revision and versions."""
        apart = {"threads": None, "micro_batch": None, "machine": None, "device": None}
        return self.changed(meta | apart)


def _device(config: TrainConfig) -> str:
    """What computes, as far as results depend on it."""
    if config.scaling.gpu:  # a dry run may be elsewhere
        return torch.cuda.get_device_name() if torch.cuda.is_available() else "GPU"
    return f"CPU, {torch.backends.cpu.get_cpu_capability()}"


def _flat(meta: dict[str, Any]) -> dict[str, Any]:
    names = {"threads": "scaling.threads", "micro_batch": "scaling.micro_batch"}
    names |= {"machine": "machine", "device": "device", "git": "revision"}
    flat = {shown: meta.get(name) for name, shown in names.items()}
    versions = meta.get("versions")
    return {**flat, **(versions if isinstance(versions, dict) else {})}
