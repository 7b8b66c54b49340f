"""Checkpoints: saved in the background, whole or not at all, verified when they are loaded.

Their layout is in `pipeline.runfolder`.
"""

from pipeline.checkpoint.loading import LoadedModel, load_model, resolve, shipped_models
from pipeline.checkpoint.store import CheckpointStore, LoadedCheckpoint
from pipeline.errors import DamagedError
from pipeline.runfolder import (
    Checkpoint,
    fingerprint,
    open_checkpoint,
    ranked,
    write_commit,
)
from pipeline.runfolder.names import COMMIT, META, MODEL, TRAINING, checkpoint_name

__all__ = [
    "COMMIT",
    "META",
    "MODEL",
    "TRAINING",
    "Checkpoint",
    "CheckpointStore",
    "DamagedError",
    "LoadedCheckpoint",
    "LoadedModel",
    "checkpoint_name",
    "fingerprint",
    "load_model",
    "open_checkpoint",
    "ranked",
    "resolve",
    "shipped_models",
    "write_commit",
]
