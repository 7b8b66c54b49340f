"""Ray Train as a run uses it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from pipeline.cluster import environment, per_worker, withdraw_requests_of_dead_runs
from pipeline.config import TrainConfig
from pipeline.config.check import worker_range
from pipeline.train.entry import train_worker
from pipeline.train.failures import find_user_error
from pipeline.train.payload import Payload

GRACE_SECONDS = 60.0  # for ranks that live on, beyond the time that a taken node has


@dataclass
class Outcome:
    """How Ray Train ended; `error` is None after success."""

    error: BaseException | None = None


def run_trainer(config: TrainConfig, payload: Payload, scratch: str, outcome: Outcome) -> None:
    """Run Ray Train; every error goes to `outcome`, for the main thread to raise."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig

    from pipeline.train.process_group import process_group

    least, most = worker_range(config)
    workers: Any = least if least == most else (least, most)
    try:
        if least < most:
            withdraw_requests_of_dead_runs()
        with environment(**_settings(payload.preemptible)):
            _trainer()(
                train_worker,
                train_loop_config={"payload": payload},
                backend_config=process_group(config.scaling.gpu, scratch),
                scaling_config=ScalingConfig(
                    num_workers=workers,
                    use_gpu=config.scaling.gpu,
                    resources_per_worker=per_worker(config),
                ),
                # Ray writes only its own notes here: checkpoints are ours (pipeline.checkpoint).
                run_config=RunConfig(
                    name=config.run.name,
                    storage_path=scratch,
                    # Rank 0 may still be saving when another rank's node goes.
                    failure_config=FailureConfig(
                        preemption_grace_s=GRACE_SECONDS,  # type: ignore[call-arg]  # of Train V2
                    ),
                ),
            ).fit()
    except BaseException as error:  # handed to the main thread, which raises it
        outcome.error = find_user_error(error) or error


def _settings(preemptible: bool) -> dict[str, str | None]:
    """Ray Train's settings, which it reads from the environment, unless the user has set them."""
    wanted = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5"}  # how soon it sees a dead worker
    if not preemptible:
        wanted["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"  # one process less
    return {name: os.environ.get(name, value) for name, value in wanted.items()}


def _trainer() -> Any:
    """Ray's trainer without two of its helpers, each of which is one more process per attempt.

    The cleaner of placement groups outlives a killed driver, and is of no use without a dashboard:
    `pipeline.cluster.release_orphans` does its work. The manager of datasets would have none.
    """
    from ray.train.v2._internal.callbacks import DatasetsCallback
    from ray.train.v2._internal.callbacks.placement_group_callback import (
        PlacementGroupCleanerCallback,
    )
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    class Trainer(DataParallelTrainer):
        def _create_default_callbacks(self) -> list[Any]:
            without = DatasetsCallback, PlacementGroupCleanerCallback
            return [c for c in super()._create_default_callbacks() if not isinstance(c, without)]

    return Trainer
