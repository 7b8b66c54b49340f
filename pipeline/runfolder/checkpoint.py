"""One committed checkpoint: its files, each verified against COMMIT when it is read."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pipeline import storage
from pipeline.errors import DamagedError, UserError
from pipeline.runfolder.commit import Commit, Print, fingerprint, parse_object, read_commit
from pipeline.runfolder.names import META, MODEL, TRAINING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint.

    Attributes:
        url: its folder.
        commit: what COMMIT says.
    """

    url: str
    commit: Commit

    @property
    def name(self) -> str:
        """The folder's name."""
        return storage.name_of(self.url)

    @property
    def step(self) -> int:
        """Optimiser steps done."""
        return self.commit.step

    @property
    def metrics(self) -> dict[str, float]:
        """Finite values of the validation at its step; empty where there was none."""
        return self.commit.metrics

    @property
    def files(self) -> dict[str, Print]:
        """Bytes and sha256 of every file, from COMMIT."""
        return self.commit.files

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(int(entry["bytes"]) for entry in self.files.values())

    @cached_property
    def meta(self) -> dict[str, Any]:
        """meta.json: `step`, `model` (fields of `era.ErAConfig`), hashes, versions.

        Raises:
            DamagedError: if it is missing or damaged.
        """
        return parse_object(storage.join(self.url, META), self.read(META))

    def load_model_state(self) -> dict[str, Tensor]:
        """The averaged weights.

        Raises:
            DamagedError: if the file is not what COMMIT says, or holds NaN or infinite values.
        """
        import torch
        from safetensors import SafetensorError
        from safetensors.torch import load

        url = storage.join(self.url, MODEL)
        try:
            state = load(self.read(MODEL))
        except (SafetensorError, KeyError, ValueError):
            raise DamagedError(f"{url}: not a safetensors file") from None
        for name, weights in state.items():
            if weights.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
                raise DamagedError(f"{url}: {name} is {weights.dtype}; weights are of float types")
            if not bool(weights.float().isfinite().all()):
                raise DamagedError(f"{url}: {name} has NaN or infinite values")
        return state

    def load_training(self) -> dict[str, Any]:
        """The training state: tensors and plain values only, nothing is unpickled.

        Raises:
            DamagedError: if the file is not what COMMIT says, or not a training state.
        """
        import torch

        stream = io.BytesIO(self.read(TRAINING))
        try:
            state = torch.load(stream, map_location="cpu", weights_only=True)
        except MemoryError:  # a sound file on a small machine
            raise
        except Exception:  # torch.load raises many kinds for a file that is not its own
            state = None
        if not isinstance(state, dict):
            raise DamagedError(f"{storage.join(self.url, TRAINING)}: not a training state")
        return state

    def read(self, name: str) -> bytes:
        """A file's bytes, checked against COMMIT; read a second time before it counts as damaged.

        Raises:
            DamagedError: if they differ. UserError: if they cannot be read.
        """
        try:
            return self._read_once(name)
        except DamagedError:
            return self._read_once(name)

    def _read_once(self, name: str) -> bytes:
        url = storage.join(self.url, name)
        if name not in self.files:
            raise DamagedError(f"{url}: not part of this checkpoint (COMMIT does not list it)")
        expected = self.files[name]
        self._require_size(name, storage.size(url) if storage.exists(url) else None)
        try:
            data = storage.read_bytes(url)
        except UserError:
            if storage.exists(url):
                raise
            self._require_size(name, None)
            raise
        if fingerprint(data) != {key: expected[key] for key in ("bytes", "sha256")}:
            raise DamagedError(f"{url}: damaged (its sha256 is not the one in COMMIT)")
        return data

    def require_sizes(self, sizes: dict[str, int]) -> None:
        """Compare the sizes of all files with COMMIT.

        Args:
            sizes: bytes by file name, as listed.

        Raises:
            DamagedError: naming the first one that is missing or has another size.
        """
        for name in self.files:
            self._require_size(name, sizes.get(name))

    def verify(self) -> None:
        """Read every file.

        Raises:
            DamagedError: naming the first one that is missing or changed.
        """
        for name in self.files:
            self.read(name)

    def _require_size(self, name: str, size: int | None) -> None:
        expected = self.files[name]["bytes"]
        if size != expected:
            found = "missing" if size is None else f"{size} bytes"
            url = storage.join(self.url, name)
            raise DamagedError(f"{url}: {found}, COMMIT says {expected} bytes")


def open_checkpoint(url: str) -> Checkpoint:
    """Open a committed checkpoint's folder, its weights unread.

    Raises:
        DamagedError: if it has no COMMIT, or COMMIT or meta.json is not sound.
    """
    try:
        checkpoint = Checkpoint(url, read_commit(url))
    except DamagedError:  # read twice before it counts as damaged
        checkpoint = Checkpoint(url, read_commit(url))
    if META not in checkpoint.files:
        raise DamagedError(f"{url}: meta.json is missing")
    if not isinstance(checkpoint.meta.get("model", {}), dict):
        raise DamagedError(f"{storage.join(url, META)}: damaged (`model` is not a mapping)")
    return checkpoint
