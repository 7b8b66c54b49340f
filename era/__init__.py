"""The method: error-aware deep unrolling for single-image defocus deblurring.

Tensors in, tensors out. Images are float (B, 3, H, W) RGB in [0, 1]. `era.load("tiny")` returns a
trained network.
"""

from era.blur import SpatiallyVaryingBlur
from era.config import SIZES, ErAConfig, named_config
from era.cost import Cost, cost, parameter_count
from era.estimator import Estimate, KernelEstimator
from era.loss import Loss, era_loss, radius_loss, restoration_loss
from era.model import ErA, Output, parameter_groups
from era.pretrained import load

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
