"""Where a network runs."""

from __future__ import annotations

import torch

from era import ErA
from pipeline.errors import UserError

DEVICES = ("cpu", "cuda")


def check_device(device: str) -> None:
    """Refuse a device that no network runs on.

    Raises:
        UserError: unless it is one of `DEVICES`.
    """
    if device not in DEVICES:
        raise UserError(f"--device {device}: expected {' or '.join(DEVICES)}")


def to_device(model: ErA, device: str) -> ErA:
    """Move a network to one of `DEVICES`, where convolutions then have the precision of float32.

    Raises:
        UserError: if torch cannot use the device on this machine.
    """
    if device == "cuda":
        if not torch.cuda.is_available():
            raise UserError(
                "--device cuda: torch finds no CUDA device here; `era doctor` says more"
            )
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    return model.to(device)
