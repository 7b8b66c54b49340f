"""Where the tiles of a large photograph lie, and how they are blended; numbers alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pipeline.arrays import Image

GRID = 16  # pixels; the strides of every size of network divide it
OVERLAP = 128  # pixels, blended; more than the prior of a single stage looks around


@dataclass(frozen=True)
class Span:
    """A range of pixels of a line of `length`; it may begin before the line and end after it."""

    start: int
    end: int
    length: int

    @property
    def size(self) -> int:
        """Number of pixels, including those outside the line."""
        return self.end - self.start

    @property
    def within(self) -> slice:
        """The part that is within the line."""
        return slice(max(0, self.start), min(self.length, self.end))

    @property
    def own(self) -> slice:
        """That part, counted from the start of the range."""
        return slice(self.within.start - self.start, self.within.stop - self.start)

    @property
    def outside(self) -> tuple[int, int]:
        """Number of pixels before and after the line."""
        return self.own.start, self.size - self.own.stop

    def mirrored(self) -> Image:
        """Indices of its pixels, with the line mirrored at its ends."""
        position = np.arange(self.start, self.end) % (2 * self.length)
        return np.minimum(position, 2 * self.length - 1 - position)


def spans(length: int, frame: int, side: int) -> Iterator[Span]:
    """Overlapping spans of about `side` pixels that cover a framed line, starting on the grid."""
    total = length + 2 * frame
    if total <= side:
        yield Span(-frame, length + frame, length)
        return
    count = -(-(total - OVERLAP) // (side - OVERLAP))
    # As small as this number of tiles allows: pixels in overlaps are computed twice.
    side = min(side, -(-(total + (count - 1) * OVERLAP) // count // GRID) * GRID + GRID)
    starts = [index * (total - side) // (count - 1) // GRID * GRID for index in range(count)]
    for index, start in enumerate(starts):
        end = length + frame if index == count - 1 else start - frame + side
        yield Span(start - frame, end, length)


def window(span: Span) -> Image:
    """A raised cosine over the overlap at both ends, 1 in between, never 0; within the line."""
    ramp = np.arange(span.size, dtype=np.float32) + 0.5
    edge = np.minimum(ramp, ramp[::-1]) / OVERLAP
    window = 0.5 - 0.5 * np.cos(np.pi * np.minimum(edge, 1.0)) + 1e-4
    return np.asarray(window[span.own], np.float32)
