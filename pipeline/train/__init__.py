"""`era train`: distributed training with exact resumption."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.train.driver import train

__all__ = ["train"]


def __getattr__(name: str) -> Any:
    """Import the driver, and so torch, when it is asked for: small actors need neither."""
    if name == "train":
        from pipeline.train.driver import train

        return train
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
