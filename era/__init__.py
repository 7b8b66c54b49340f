"""The method: error-aware deep unrolling for single-image defocus deblurring.

Tensors in, tensors out. Images are float (B, 3, H, W) RGB in [0, 1]. `era.load("tiny")` returns a
trained network.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from era.blur import SpatiallyVaryingBlur
    from era.config import SIZES, ErAConfig, named_config
    from era.estimator import Estimate, KernelEstimator
    from era.loss import Loss, era_loss, radius_loss, restoration_loss
    from era.macs import Cost, cost, parameter_count
    from era.model import ErA, Output, parameter_groups
    from era.pretrained import load
else:
    # Imported at first use: a configuration can be checked without loading torch.
    _MODULES = {
        "blur": ("SpatiallyVaryingBlur",),
        "config": ("SIZES", "ErAConfig", "named_config"),
        "estimator": ("Estimate", "KernelEstimator"),
        "loss": ("Loss", "era_loss", "radius_loss", "restoration_loss"),
        "macs": ("Cost", "cost", "parameter_count"),
        "model": ("ErA", "Output", "parameter_groups"),
        "pretrained": ("load",),
    }
    _HOMES = {name: module for module, names in _MODULES.items() for name in names}

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module 'era' has no attribute {name!r}")
        value = getattr(import_module(f"era.{_HOMES[name]}"), name)
        globals()[name] = value
        return value


__all__ = [
    "SIZES",
    "Cost",
    "ErA",
    "ErAConfig",
    "Estimate",
    "KernelEstimator",
    "Loss",
    "Output",
    "SpatiallyVaryingBlur",
    "cost",
    "era_loss",
    "load",
    "named_config",
    "parameter_count",
    "parameter_groups",
    "radius_loss",
    "restoration_loss",
]
