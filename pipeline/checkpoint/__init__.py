"""Checkpoints: saved in the background, whole or not at all, verified when loaded.

<run>/checkpoints/step-00000200/
    model.safetensors   averaged weights under plain names
    training.pt         everything else that resuming needs (loaded with weights_only=True)
    meta.json           step, network, hashes, versions
    COMMIT              written last: bytes and sha256 of the files, and the metrics
"""

from pipeline.checkpoint.folder import (
    COMMIT,
    META,
    MODEL,
    TRAINING,
    Checkpoint,
    checkpoint_name,
    fingerprint,
    open_checkpoint,
    write_commit,
)
from pipeline.checkpoint.loading import LoadedModel, load_model, resolve, shipped_models
from pipeline.checkpoint.ranking import higher_is_better, ranked
from pipeline.checkpoint.store import CheckpointStore
from pipeline.errors import DamagedError

__all__ = [
    "COMMIT",
    "META",
    "MODEL",
    "TRAINING",
    "Checkpoint",
    "CheckpointStore",
    "DamagedError",
    "LoadedModel",
    "checkpoint_name",
    "fingerprint",
    "higher_is_better",
    "load_model",
    "open_checkpoint",
    "ranked",
    "resolve",
    "shipped_models",
    "write_commit",
]
