"""Trained networks by name or place.

The method itself knows tensors only. Files, checkpoints and buckets belong to `pipeline`, which is
imported when `load` is called and not before: whoever uses the method alone needs torch alone.
"""

from __future__ import annotations

import importlib
import os

from era.model import ErA


def load(what: str | os.PathLike[str]) -> ErA:
    """Load a trained network, in eval mode on the CPU.

    Args:
        what: the name of a shipped network (such as ``tiny``), or the path or URL of a run (its
            best checkpoint), a checkpoint, or a bundle made by ``era runs pull``.

    Raises:
        pipeline.errors.UserError: if there is no network there, or its files are damaged.
        ImportError: if the package `pipeline` is not installed.

    >>> import era, torch
    >>> network = era.load("tiny")
    >>> network.training
    False
    >>> output = network(torch.full((1, 3, 48, 64), 0.5))
    >>> tuple(output.restored.shape), tuple(output.error.shape)
    ((1, 3, 48, 64), (1, 3, 48, 64))
    """
    checkpoint = importlib.import_module("pipeline.checkpoint")  # a static import would be a layer
    model: ErA = checkpoint.load_model(os.fspath(what)).model
    return model
