"""What restoring a photograph costs: time, memory, and which part takes it.

    python -m benchmarks.restore

Each case runs in a process of its own, so that its peak memory is its own. The baseline is a
NAFNet-style network of as many parameters, whole image or in tiles, on the same photograph.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.plain import NafNet
from benchmarks.table import machine, markdown, record
from era import ErA, SpatiallyVaryingBlur, named_config, parameter_count
from pipeline.arrays import Image
from pipeline.checkpoint import CheckpointStore
from pipeline.images import write_png
from pipeline.inference import restore_array

MEGAPIXELS = {1: (1024, 1024), 4: (2048, 2048), 24: (4000, 6000)}
CASES = (  # megapixels, in tiles, bf16; 24 megapixels go through the command line, in tiles
    (1, False, False),
    (1, True, False),
    (1, False, True),
    (4, False, False),
    (4, True, False),
)
TILE = 724 * 724  # pixels
NAF_WIDTH = 23  # about as many parameters as size tiny


def photograph(megapixels: int) -> Image:
    """A smooth random photograph, 8 bits."""
    import cv2

    height, width = MEGAPIXELS[megapixels]
    small = np.random.default_rng(0).integers(0, 255, (height // 16, width // 16, 3), np.uint8)
    return np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC))


def one(network: str, megapixels: int, tiled: bool, bf16: bool) -> dict[str, float]:
    """Restore once; seconds per megapixel and peak memory in GiB."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    image = photograph(megapixels)
    autocast = torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext()
    limit = TILE if tiled else 10**9
    with autocast:
        began = time.process_time()
        if network == "era":
            restore_array(quick(ErA(named_config("tiny"))), image, max_pixels=limit, maps=False)
        else:
            plain(quick(NafNet(NAF_WIDTH)), image, limit)
    seconds = time.process_time() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"seconds": seconds / megapixels, "peak": peak}


def quick(model: Any) -> Any:
    """Prepare a network as `load_model` does."""
    return model.to(memory_format=torch.channels_last).eval()


@torch.inference_mode()
def plain(model: NafNet, image: Image, limit: int) -> Image:
    """The baseline on the same photograph, in plain tiles with an overlap."""
    side = 10**9 if image.shape[0] * image.shape[1] <= limit else int(limit**0.5)
    step = max(1, side - 128)
    out = np.empty_like(image)
    for top in range(0, image.shape[0], step):
        for left in range(0, image.shape[1], step):
            tile = image[top : top + side, left : left + side].astype(np.float32) / 255
            y = model(torch.from_numpy(tile).permute(2, 0, 1)[None])[0].permute(1, 2, 0)
            pixels = (y.float().clamp(0, 1) * 255).round().to(torch.uint8).numpy()
            out[top : top + side, left : left + side] = pixels
    return out


@torch.inference_mode()
def shares() -> dict[str, float]:
    """The share of CPU time of estimation, H, the Wiener filters and the priors, at 1 megapixel."""
    torch.set_num_threads(1)
    model = quick(ErA(named_config("tiny")))
    spent: dict[str, float] = {}

    def timed(owner: Any, name: str, label: str) -> None:
        real = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            began = time.process_time()
            result = real(*args, **kwargs)
            spent[label] = spent.get(label, 0.0) + time.process_time() - began
            return result

        setattr(owner, name, call)

    timed(model.estimator, "forward", "estimation")
    timed(SpatiallyVaryingBlur, "apply", "H")
    timed(SpatiallyVaryingBlur, "wiener", "Wiener filters")
    for prior in (*model.priors, *model.error_priors):
        timed(prior, "forward", "priors")
    began = time.process_time()
    restore_array(model, photograph(1), maps=False)
    total = time.process_time() - began
    found = {label: seconds / total for label, seconds in spent.items()}
    return {**found, "the rest": 1 - sum(found.values())}


def command_line(megapixels: int) -> dict[str, float]:
    """`era restore` on a PNG file with its own defaults, everything included."""
    with tempfile.TemporaryDirectory() as scratch:
        model, store = ErA(named_config("tiny")), CheckpointStore(f"{scratch}/run")
        store.save(
            step=1,
            model=model.state_dict(),
            training={},
            meta={"step": 1, "model": model.config.to_dict()},
            files={},
            metrics={},
        )
        store.wait()
        write_png(f"{scratch}/photo.png", photograph(megapixels))
        command = [sys.executable, "-m", "pipeline", "restore", f"{scratch}/photo.png"]
        command += ["--out", f"{scratch}/out", "--checkpoint", f"{scratch}/run"]
        subprocess.run(command, check=True, capture_output=True)
        assert Path(f"{scratch}/out/photo.png").stat().st_size
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = (used.ru_utime + used.ru_stime) / megapixels
    return {"seconds": seconds, "peak": used.ru_maxrss / 2**20}


def main() -> None:
    """Measure and record."""
    if len(sys.argv) > 1:
        network, megapixels, tiled, bf16 = json.loads(sys.argv[1])
        found = (
            command_line(megapixels)
            if network == "command"
            else one(network, megapixels, tiled, bf16)
        )
        print(json.dumps(found))
        return
    rows = []
    for megapixels, tiled, bf16 in CASES:
        how = "tiles" if tiled else "whole", "bf16" if bf16 else "float32"
        ours = measure("era", megapixels, tiled, bf16)
        row: list[object] = [megapixels, *how, ours["seconds"], "-", ours["peak"], "-"]
        if tiled or megapixels == 1:
            naf = measure("naf", megapixels, tiled, bf16)
            row[4], row[6] = ours["seconds"] / naf["seconds"], naf["peak"]
        rows.append(row)
    whole = measure("command", 24, True, False)
    rows.append(
        [24, "tiles, `era restore` on a PNG", "float32", whole["seconds"], "-", whole["peak"], "-"]
    )
    columns = (
        "megapixels",
        "",
        "",
        "CPU s per megapixel",
        "x NAFNet-style",
        "peak GiB",
        "peak GiB, NAFNet-style",
    )
    parameters = parameter_count(ErA(named_config("tiny"))), parameter_count(NafNet(NAF_WIDTH))
    text = [
        f"{machine()}. One thread. Size tiny ({parameters[0]:,} parameters) against a NAFNet-style "
        f"network of {parameters[1]:,}; `python -m benchmarks.restore`.",
        "",
        markdown(columns, rows),
        "",
        "Share of CPU time at 1 megapixel: "
        + ", ".join(f"{label} {share:.0%}" for label, share in shares().items())
        + ".",
    ]
    record("Restore", "\n".join(text))


def measure(network: str, megapixels: int, tiled: bool, bf16: bool) -> dict[str, float]:
    """One case in a process of its own."""
    case = json.dumps([network, megapixels, tiled, bf16])
    command = [sys.executable, "-m", "benchmarks.restore", case]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    main()
