"""One checkpoint folder: what lies in it, and whether every byte is as it was written."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor

from pipeline import storage
from pipeline.errors import DamagedError, UserError

FORMAT = "era-checkpoint/1"
MODEL, TRAINING, META, COMMIT = "model.safetensors", "training.pt", "meta.json", "COMMIT"
PREFIX = "step-"


def checkpoint_name(step: int) -> str:
    """The folder name of a step's checkpoint."""
    return f"{PREFIX}{step:08d}"


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint.

    Attributes:
        url: its folder.
        meta: meta.json: `step`, `model` (fields of `era.ErAConfig`), hashes, versions.
        metrics: of the validation at its step; empty where there was none.
        files: bytes and sha256 of every file, from COMMIT.
    """

    url: str
    meta: dict[str, Any]
    metrics: dict[str, float] = field(default_factory=dict)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The folder's name."""
        return storage.name_of(self.url)

    @property
    def step(self) -> int:
        """Optimiser steps done."""
        return int(self.meta["step"])

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(int(entry["bytes"]) for entry in self.files.values())

    def load_model_state(self) -> dict[str, Tensor]:
        """The averaged weights.

        Raises:
            DamagedError: if the file is not what COMMIT says.
        """
        try:
            return load_safetensors(self.read(MODEL))
        except SafetensorError:
            raise DamagedError(f"{storage.join(self.url, MODEL)}: not a safetensors file") from None

    def load_training(self) -> dict[str, Any]:
        """The training state; tensors and plain values only, nothing is unpickled."""
        stream = io.BytesIO(self.read(TRAINING))
        state: dict[str, Any] = torch.load(stream, map_location="cpu", weights_only=True)
        return state

    def read(self, name: str) -> bytes:
        """A file's bytes, checked against COMMIT.

        Raises:
            DamagedError: if they differ. UserError: if they cannot be read.
        """
        url = storage.join(self.url, name)
        if name not in self.files:
            raise DamagedError(f"{url}: not part of this checkpoint (COMMIT does not list it)")
        data = storage.read_bytes(url)
        if fingerprint(data) != self.files[name]:
            raise DamagedError(f"{url}: damaged (its sha256 is not the one in COMMIT)")
        return data

    def verify(self) -> None:
        """Read every file.

        Raises:
            DamagedError: naming the first one that is missing or changed.
        """
        sizes = {entry.relative: entry.size for entry in storage.find(self.url)}
        for name, expected in self.files.items():
            if sizes.get(name) != expected["bytes"]:
                found = "missing" if name not in sizes else f"{sizes[name]} bytes"
                raise DamagedError(
                    f"{storage.join(self.url, name)}: {found}, COMMIT says {expected}"
                )
            self.read(name)


def open_checkpoint(url: str) -> Checkpoint:
    """Open a committed checkpoint folder, its weights unread.

    Raises:
        DamagedError: if it has no COMMIT, or COMMIT or meta.json is not sound.
    """
    commit_url = storage.join(url, COMMIT)
    if not storage.exists(commit_url):
        raise DamagedError(f"{url}: not a checkpoint, or an unfinished one (it has no COMMIT)")
    metrics, files = _parsed(commit_url, storage.read_bytes(commit_url))
    if META not in files or not storage.exists(storage.join(url, META)):
        raise DamagedError(f"{url}: meta.json is missing")
    meta = json.loads(Checkpoint(url, {}, metrics, files).read(META))
    return Checkpoint(url, meta, metrics, files)


def write_commit(
    url: str,
    step: int,
    metrics: dict[str, float],
    files: dict[str, dict[str, Any]],
    attempt: str = "",
) -> None:
    """Write COMMIT: from now on the folder counts as whole."""
    author = {"attempt": attempt} if attempt else {}
    commit = {"format": FORMAT, "step": step, **author, "metrics": metrics, "files": files}
    storage.write_json(storage.join(url, COMMIT), commit)


def fingerprint(data: bytes) -> dict[str, Any]:
    """What COMMIT says of a file: its bytes and sha256."""
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _parsed(url: str, data: bytes) -> tuple[dict[str, float], dict[str, dict[str, Any]]]:
    try:
        commit = json.loads(data)
        known = commit["format"] == FORMAT
        metrics, files = dict(commit["metrics"]), dict(commit["files"])
    except (ValueError, KeyError, TypeError):
        raise DamagedError(f"{url}: damaged (not the JSON that it should be)") from None
    if not known:
        raise UserError(f"{url}: format {commit['format']}, this program reads {FORMAT}")
    return metrics, files
