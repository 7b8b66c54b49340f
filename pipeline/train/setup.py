"""Preparation of a worker: threads and determinism, the data, the order of samples."""

from __future__ import annotations

import os

import torch

from pipeline import storage
from pipeline.config import Deterministic, TrainConfig
from pipeline.data.order import OrderPlan
from pipeline.data.split import Split, open_split
from pipeline.errors import UserError
from pipeline.metrics import require_scorable


def prepare_torch(config: TrainConfig) -> torch.device:
    """Set threads, determinism and TF32; return this rank's device."""
    torch.set_num_threads(config.scaling.threads)
    torch.backends.cuda.matmul.allow_tf32 = config.train.tf32
    torch.backends.cudnn.allow_tf32 = config.train.tf32
    wanted = config.train.deterministic
    deterministic = wanted in (Deterministic.ON, Deterministic.STRICT) or (
        wanted is Deterministic.AUTO and not config.scaling.gpu
    )
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = not deterministic
    if config.scaling.gpu:
        import ray.train.torch

        device = ray.train.torch.get_device()
        torch.cuda.set_device(device)
        return device
    return torch.device("cpu")


def imitated(precision: str, device: torch.device) -> str:
    """Advice where this processor has no instructions for a half-precision type; else empty."""
    if device.type != "cpu" or precision == "fp32":
        return ""
    if any(there for name, there in torch.cpu.get_capabilities().items() if precision in name):
        return ""
    return (
        f"train.precision={precision}: this processor has no instructions for it, and may take ten "
        "times as long as with fp32"
    )


def open_splits(config: TrainConfig) -> tuple[Split, Split | None]:
    """Open the training and validation data."""
    cache = config.cache.dir, config.cache.max_gb
    train = open_split(storage.absolute(config.data.train), *cache)
    val = open_split(storage.absolute(config.data.val), *cache) if config.data.val else None
    for url, split in ((config.data.train, train), (config.data.val, val)):
        if split is not None and not split.has_sharp:
            raise UserError(f"{url}: not every sample has a sharp image; training needs pairs")
    if val is not None:
        require_scorable(val)
    return train, val


def order_plan(config: TrainConfig) -> OrderPlan:
    """The order of samples that the configuration asks for."""
    return OrderPlan(
        seed=config.train.seed,
        global_batch=config.train.global_batch,
        crops_per_image=config.data.crops_per_image,
        window=config.data.window,
        patch=config.train.patch,
        steps=config.train.steps,
        rotate=config.data.rotate,
        min_sharpness_quantile=config.data.min_sharpness_quantile,
    )
