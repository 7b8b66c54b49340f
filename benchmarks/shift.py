"""Does the network do the same in a whole photograph as in a training crop?

    python -m benchmarks.shift CHECKPOINT SPLIT

Every image is restored whole, and again in crops of the training size, each estimated by
itself. Compared are the PSNR and the estimated radius over the same pixels.
"""

from __future__ import annotations

import sys

import numpy as np

from benchmarks.table import machine, markdown, record
from pipeline.checkpoint import load_model
from pipeline.data.split import open_split
from pipeline.images import to_float
from pipeline.inference import restore_array
from pipeline.metrics import psnr

CROP = 128


def main(checkpoint: str, data: str) -> None:
    """Measure and record."""
    model, split = load_model(checkpoint).model, open_split(data)
    rows: list[tuple[float, ...]] = []
    for index in range(len(split)):
        sample = split.load(index)
        assert sample.sharp is not None
        sharp = to_float(sample.sharp)
        whole = restore_array(model, sample.blur)
        for top in range(0, sharp.shape[0] - CROP + 1, CROP):
            for left in range(0, sharp.shape[1] - CROP + 1, CROP):
                place = slice(top, top + CROP), slice(left, left + CROP)
                crop = restore_array(model, np.ascontiguousarray(sample.blur[place]))
                radii = whole.radius[place], crop.radius
                row = [psnr(to_float(sample.blur[place]), sharp[place])]
                row += [psnr(whole.restored[place], sharp[place])]
                row += [psnr(crop.restored, sharp[place])]
                row += [float(np.abs(radii[0] - radii[1]).mean())]
                if sample.radius is not None:
                    true = sample.radius[place] / 256
                    row += [float(np.abs(radius - true).mean()) for radius in radii]
                rows.append(tuple(row))
    means = np.mean(rows, axis=0)
    names = ("blurred, dB", "restored whole, dB", f"restored in crops of {CROP} px, dB")
    names += ("difference of the radii, px",)
    names += ("error of the radius, whole, px", "error of the radius, crops, px")
    table = [[name, float(value)] for name, value in zip(names, means, strict=False)]
    text = [
        f"{machine()}. {len(split)} images, {len(rows)} crops of {CROP} px, means over the crops; "
        "`python -m benchmarks.shift CHECKPOINT SPLIT` on the demo's run and its test split.",
        "",
        markdown(("", ""), table),
    ]
    record("From training crops to whole photographs", "\n".join(text))


if __name__ == "__main__":
    main(*sys.argv[1:3])
