"""What the loader yields."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass
class Batch:
    """A rank's share of one step, n samples of S pixels square.

    Attributes:
        ids: names of the samples. crcs: crc32 of each crop's bytes (blur, then sharp), if asked.
        blur, sharp: (n, S, S, 3) uint16. radius: (n, S, S) uint16, pixels x 256, or None.
        has_radius: (n,) bool. flips: (n,) int64, 0..7, not applied yet.
    """

    step: int
    ids: list[str]
    crcs: list[int]
    blur: Tensor
    sharp: Tensor
    radius: Tensor | None
    has_radius: Tensor
    flips: Tensor
