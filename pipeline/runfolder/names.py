"""The names of a run's files, and of the files of one checkpoint."""

from __future__ import annotations

import re

CONFIG = "config.yaml"
ATTEMPTS, ATTEMPT_FOLDER = "attempts.jsonl", "attempts"
METRICS, SAMPLES = "metrics.jsonl", "samples.jsonl"
CHAOS, NONFINITE, SKIPPED = "chaos.jsonl", "nonfinite.jsonl", "skipped.jsonl"
CHECKPOINTS, NEWEST = "checkpoints", "newest.json"
WANDB = "wandb"
RESULT, LOGS = "result.json", "logs"  # of the commands that have ended
EXCHANGE = "exchange.json"  # of a run that began with another run's weights: where they are from

MODEL, TRAINING, META, COMMIT = "model.safetensors", "training.pt", "meta.json", "COMMIT"
CLAIM = "CLAIM"  # which attempt writes this folder; see docs/protocol.md
RUN_FILES = (METRICS, SAMPLES)  # each checkpoint keeps a copy of these

_CHECKPOINT = re.compile(r"step-([0-9]{1,18})([.][A-Za-z0-9-]{1,60})?")


def checkpoint_name(step: int, writer: str = "") -> str:
    """The folder name of a step's checkpoint; with the writer where that name was taken."""
    return f"step-{step:08d}" + (f".{writer}" if writer else "")


def step_of(name: str) -> int | None:
    """The step of a checkpoint's folder name; None for any other name."""
    found = _CHECKPOINT.fullmatch(name)
    return int(found[1]) if found else None
