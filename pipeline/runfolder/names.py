"""The names of a run's files, and of the files of one checkpoint."""

from __future__ import annotations

CONFIG = "config.yaml"
ATTEMPTS, ATTEMPT_FOLDER = "attempts.jsonl", "attempts"
METRICS, SAMPLES = "metrics.jsonl", "samples.jsonl"
CHAOS, NONFINITE, SKIPPED = "chaos.jsonl", "nonfinite.jsonl", "skipped.jsonl"
CHECKPOINTS, NEWEST = "checkpoints", "newest.json"
WANDB = "wandb"

MODEL, TRAINING, META, COMMIT = "model.safetensors", "training.pt", "meta.json", "COMMIT"
RUN_FILES = (METRICS, SAMPLES)  # each checkpoint keeps a copy of these

_PREFIX = "step-"


def checkpoint_name(step: int) -> str:
    """The folder name of a step's checkpoint."""
    return f"{_PREFIX}{step:08d}"


def step_of(name: str) -> int | None:
    """The step of a checkpoint's folder name; None for any other name."""
    digits = name.removeprefix(_PREFIX)
    known = name.startswith(_PREFIX) and digits.isascii() and digits.isdecimal()
    return int(digits) if known and len(digits) <= 18 else None
