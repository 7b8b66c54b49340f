"""Checks beyond the schema's types: ranges, choices, combinations."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from era.config import named_config
from pipeline.config.schema import TrainConfig
from pipeline.errors import UserError

MOST = 10**15  # of whole numbers without a bound of their own: runs keep 19 digits


def check_train_config(config: TrainConfig) -> None:
    """Check every value; all problems are named in one line.

    Raises:
        UserError: if any value is outside its range or contradicts another.
    """
    problems = [*_run(config), *_model(config), *_train(config), *_scaling(config), *_rest(config)]
    if problems:
        raise UserError("config: " + "; ".join(problems))


def worker_range(config: TrainConfig) -> tuple[int, int]:
    """Return the least and the greatest number of workers."""
    return config.scaling.workers.least, config.scaling.workers.most


MAX_PATCH = 8192  # pixels; a step of one such crop takes hundreds of gigabytes


def _run(config: TrainConfig) -> Iterable[str]:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}", config.run.name):
        yield f"run.name {config.run.name!r} must be letters, digits, '.', '_' or '-'"
    if not config.run.root:
        yield "run.root is empty; give a folder or an s3:// URL"


def _model(config: TrainConfig) -> Iterable[str]:
    try:
        named_config(config.model.size, **config.model.overrides)
    except ValueError as error:
        yield f"model: {error}"


def _train(config: TrainConfig) -> Iterable[str]:
    train = config.train
    yield from _at_least("train.steps", train.steps, 1)
    yield from _at_least("train.global_batch", train.global_batch, 1)
    yield from _at_least("train.validate_every", train.validate_every, 0)
    yield from _at_least("train.nonfinite_budget", train.nonfinite_budget, 0)
    for name in (
        "clip_norm",
        "learning_rate",
        "min_learning_rate",
        "scalar_rate",
        "weight_decay",
        "estimator_share",
        "prior_share",
    ):
        yield from _at_least(f"train.{name}", getattr(train, name), 0)
    yield from _within("train.seed", train.seed, 0, 2**63 - 1)
    yield from _within("train.warmup", train.warmup, 0, 1)
    yield from _within("train.ema", train.ema, 0, 0.999999)
    yield from _within("loss.omega", config.loss.omega, 0, 1)
    yield from _at_least("loss.radius", config.loss.radius, 0)
    yield from _at_least("loss.relative", config.loss.relative, 0)
    if train.estimator_share + train.prior_share > 1:
        yield "train.estimator_share + train.prior_share must not exceed 1"
    if train.precision not in ("fp32", "bf16", "fp16"):
        yield f"train.precision must be fp32, bf16 or fp16, got {train.precision!r}"
    if not train.patch or not all(16 <= size <= MAX_PATCH for size in train.patch):
        sizes = f"of 16 to {MAX_PATCH} pixels"
        yield f"train.patch must list sizes {sizes}, got {list(train.patch)}"


def _scaling(config: TrainConfig) -> Iterable[str]:
    least, most = worker_range(config)
    if least > most:
        yield f"scaling.workers: least {least} is more than most {most}"
    if most > config.train.global_batch:
        yield (
            f"scaling.workers {most} is more than train.global_batch {config.train.global_batch}; "
            "every worker needs a sample"
        )
    yield from _at_least("scaling.threads", config.scaling.threads, 1)
    yield from _at_least("scaling.micro_batch", config.scaling.micro_batch, 0)
    yield from _at_least("scaling.cpus_per_worker", config.scaling.cpus_per_worker, 1)


def _rest(config: TrainConfig) -> Iterable[str]:
    yield from _at_least("data.crops_per_image", config.data.crops_per_image, 1)
    yield from _at_least("data.window", config.data.window, 0)
    yield from _within("data.min_sharpness_quantile", config.data.min_sharpness_quantile, 0, 0.95)
    yield from _at_least("loader.workers", config.loader.workers, 0)
    yield from _at_least("loader.prefetch", config.loader.prefetch, 1)
    yield from _at_least("checkpoint.every", config.checkpoint.every, 1)
    yield from _at_least("checkpoint.keep_best", config.checkpoint.keep_best, 1)
    yield from _at_least("tracking.log_every", config.tracking.log_every, 1)
    yield from _at_least("tracking.images", config.tracking.images, 0)
    yield from _at_least("debug.stop_at", config.debug.stop_at, 0)
    yield from _at_least("chaos.kill_every", config.chaos.kill_every, 0)
    if not 0 < config.cache.max_gb < math.inf:
        yield f"cache.max_gb must be positive, got {config.cache.max_gb}"
    elif config.cache.max_gb > MOST:
        yield f"cache.max_gb must be at most {MOST}, got {config.cache.max_gb}"
    if config.tracking.wandb not in ("auto", "online", "offline", "disabled"):
        yield f"tracking.wandb must be auto, online, offline or disabled: {config.tracking.wandb!r}"


def _at_least(key: str, value: float, least: float) -> Iterable[str]:
    if not least <= value < math.inf:
        yield f"{key} must be at least {least} and finite, got {value}"
    elif isinstance(value, int) and value > MOST:
        yield f"{key} must be at most {MOST}, got {str(value)[:40]}"


def _within(key: str, value: float, low: float, high: float) -> Iterable[str]:
    if not low <= value <= high:
        yield f"{key} must be from {low} to {high}, got {value}"
