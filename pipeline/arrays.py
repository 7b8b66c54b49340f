"""Types and units of the arrays that modules exchange."""

from __future__ import annotations

from typing import Any

import numpy as np

Image = np.ndarray[Any, Any]
EMPTY: Image = np.zeros((0, 0, 0), np.float32)
RADIUS_UNITS = 256.0  # files and shards hold blur radii as uint16: pixels x 256
