"""Run by benchmarks.loader in the peers' own environment: one peer's rate, printed as JSON.

Each writes the same pictures as raw uint16 tiles of 512 pixels, its usual preparation, and reads
random crops of 256 pixels by random access.
"""

from __future__ import annotations

import json
import sys
import time
from importlib.machinery import ModuleSpec
from pathlib import Path
from unittest.mock import MagicMock

import cv2
import numpy as np

CROP, TILE = 256, 512


def tiles(folder: Path):  # type: ignore[no-untyped-def]
    """Pairs of raw tiles."""
    for path in sorted((folder / "blur").iterdir()):
        pair = [
            cv2.imread(str(folder / kind / path.name), cv2.IMREAD_UNCHANGED)
            for kind in ("blur", "sharp")
        ]
        for top in range(0, pair[0].shape[0] - TILE + 1, TILE):
            for left in range(0, pair[0].shape[1] - TILE + 1, TILE):
                place = slice(top, top + TILE), slice(left, left + TILE)
                yield [np.ascontiguousarray(image[place]) for image in pair]


def crop(image, rng):  # type: ignore[no-untyped-def]
    """A random crop, copied."""
    top, left = rng.integers(TILE - CROP + 1, size=2)
    return image[top : top + CROP, left : left + CROP].copy()


def mosaicml(folder: Path, out: Path):  # type: ignore[no-untyped-def]
    """MDS shards of raw bytes."""
    # Its vision data sets import torchvision, which does not load beside a CPU build of torch;
    # nothing that is measured here uses it.
    for name in ("torchvision", "torchvision.datasets", "torchvision.transforms.functional"):
        sys.modules[name] = MagicMock(__spec__=ModuleSpec(name, None))
    sys.modules["torchvision.datasets"].VisionDataset = object
    from streaming import MDSWriter, StreamingDataset

    columns = {
        "blur": f"ndarray:uint16:{TILE},{TILE},3",
        "sharp": f"ndarray:uint16:{TILE},{TILE},3",
    }
    with MDSWriter(out=str(out), columns=columns) as writer:
        for blur, sharp in tiles(folder):
            writer.write({"blur": blur, "sharp": sharp})
    return StreamingDataset(local=str(out), shuffle=False, batch_size=1)


def load_pair(path: str) -> dict[str, np.ndarray]:
    """A pair of raw tiles; at the module's top, since LitData sends it to its workers."""
    blur, sharp = np.load(path)
    return {"blur": blur, "sharp": sharp}


def litdata(folder: Path, out: Path):  # type: ignore[no-untyped-def]
    """LitData's optimised chunks of raw arrays."""
    from litdata import StreamingDataset, optimize

    raw = out.with_name("litdata-tiles")
    raw.mkdir()
    for index, pair in enumerate(tiles(folder)):
        np.save(raw / f"{index:05d}.npy", np.stack(pair))
    optimize(
        fn=load_pair,
        inputs=[str(path) for path in sorted(raw.iterdir())],
        output_dir=str(out),
        num_workers=1,
        chunk_bytes="64MB",
    )
    return StreamingDataset(str(out))


def main() -> None:
    """Measure the peer that the command line names."""
    name, folder, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    data = {"mosaicml-streaming": mosaicml, "litdata": litdata}[name](folder, out)
    rng = np.random.default_rng(0)

    def make() -> None:
        sample = data[int(rng.integers(len(data)))]
        crop(np.asarray(sample["blur"]), rng)
        crop(np.asarray(sample["sharp"]), rng)

    for _ in range(50):
        make()
    cpu, wall, count = time.process_time(), time.perf_counter(), 0
    while time.perf_counter() - wall < 3:
        make()
        count += 1
    rates = count / (time.process_time() - cpu), count / (time.perf_counter() - wall)
    print(json.dumps(rates))


if __name__ == "__main__":
    main()
