"""`era train --dry-run`: what the command would do, from where, and what that takes."""

from __future__ import annotations

import json
import statistics
from typing import Any

import era
from pipeline.config import TrainConfig
from pipeline.config.check import worker_range
from pipeline.runfolder import RunFolder
from pipeline.runfolder.frozen import differences, free_part, has_begun
from pipeline.runfolder.lines import is_number
from pipeline.runfolder.names import ATTEMPTS, METRICS
from pipeline.train.driver import prepared
from pipeline.train.lineage import Lineage
from pipeline.train.setup import open_splits
from pipeline.train.sizing import CPU_TFLOPS, GPU_TFLOPS, LINK_GBIT, Need, need

RATE = "train/samples_per_second"
RECENT = 20  # logged steps whose rate is taken for that of the next ones


def dry_run(config: TrainConfig) -> dict[str, Any]:
    """What `train` would do with this configuration now. Nothing is written, and no Ray started.

    Returns:
        `run`, `action` (start, resume, or none where the run is finished), `checkpoint` (resumed
        from), `step`, `steps`, `workers`, `differs` (from the last attempt),
        `train_samples`, `val_samples`, `parameters`, `checkpoint_mb`, `worker_gb` (memory that the
        network needs on each worker), `step_seconds`, `hours` (to the last step) and `estimate`
        (the source of the time).

    Raises:
        UserError: where the command itself would fail.
    """
    config, run_url = prepared(config)
    folder = RunFolder(run_url)
    begun = has_begun(run_url, config)
    latest = folder.latest() if begun else None
    step, steps = latest.step if latest else 0, config.train.steps
    splits = train_split, val_split = open_splits(config)
    workers = worker_range(config)[1]
    network = era.named_config(config.model.size, **config.model.overrides)
    lineage = Lineage(config, network, splits, workers)
    if latest:
        lineage.refuse_other_data(latest.meta, run_url)
    code = lineage.changed_code(latest.meta) if latest else []
    model = need(config, _tflops(config), LINK_GBIT, workers)
    seconds, source = _step_seconds(config, folder, model)
    return {
        "run": run_url,
        "action": _action(step, steps),
        "checkpoint": latest.url if latest else "",
        "step": step,
        "steps": steps,
        "workers": workers,
        "differs": [*_settings(config, folder), *code],
        "train_samples": len(train_split),
        "val_samples": len(val_split) if val_split else 0,
        "parameters": model.parameters,
        "checkpoint_mb": model.checkpoint / 1e6,
        "worker_gb": model.memory / 1e9,
        "step_seconds": seconds,
        "hours": max(0, steps - step) * seconds / 3600,
        "estimate": source,
    }


def _action(step: int, steps: int) -> str:
    if step >= steps:
        return "none"
    return "resume" if step else "start"


def _tflops(config: TrainConfig) -> float:
    return GPU_TFLOPS if config.scaling.gpu else CPU_TFLOPS * config.scaling.threads


def _step_seconds(config: TrainConfig, folder: RunFolder, model: Need) -> tuple[float, str]:
    """Seconds of a step: as the run measured them, else by the model; and which of the two."""
    rates = [line[RATE] for line in folder.lines(METRICS) if is_number(line.get(RATE))]
    recent = [rate for rate in rates[-RECENT:] if rate > 0]
    if recent:
        return config.train.global_batch / statistics.median(recent), "measured in this run"
    worker = "GPU" if config.scaling.gpu else "worker"
    return model.step, f"a model that assumes {_tflops(config):g} TFLOP/s on each {worker}"


def _settings(config: TrainConfig, folder: RunFolder) -> list[str]:
    """The settings that are not those of the last attempt."""
    attempts = folder.lines(ATTEMPTS)
    before = attempts[-1].get("free") if attempts else None
    now = json.loads(json.dumps(free_part(config)))
    return differences(before, now) if isinstance(before, dict) else []
