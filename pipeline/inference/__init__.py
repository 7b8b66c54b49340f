"""A network over photographs of any size: whole or in tiles, on processors or a GPU."""

from pipeline.inference.device import DEVICES, check_device, to_device
from pipeline.inference.memory import bytes_of, pixels_for
from pipeline.inference.photograph import radius_of, require_finite, restore_array

__all__ = [
    "DEVICES",
    "bytes_of",
    "check_device",
    "pixels_for",
    "radius_of",
    "require_finite",
    "restore_array",
    "to_device",
]
