"""Train the network for photographs on one GPU (or, slowly, a CPU), without Ray.

    python -m benchmarks.photograph_network PHOTOS OUT --seconds 560
    python -m benchmarks.photograph_network PHOTOS OUT2 --seconds 4000 --begin WEIGHTS \\
        --perceptual ALEXNET

PHOTOS holds sharp photographs (`benchmarks.photograph_list` fetches the listed ones); the pairs are
made on the device (`benchmarks.camera_pairs`). The learning rate falls to zero over `--seconds`, in
which the crops grow. OUT gets weights.safetensors (the moving average) every minute, and log.jsonl;
`benchmarks.photograph_bundle` makes a bundle of them. An interrupted training starts from the
beginning.

The second command learns on from trained weights, in small batches as a CPU can make them, with
LPIPS (torchvision's AlexNet weights in ALEXNET) in the loss, as INIKNet and P2IKT learn, too. What
comes out lies between the weights it began with and those it has learned (LABBOOK.md, 20).
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.camera_pairs import Batch, CameraPairs
from era import ErA, ErAConfig, named_config, radius_loss
from era.model import parameter_groups
from pipeline.evaluate.lpips import Lpips, load_lpips
from pipeline.train.setup import imitated

CONFIG = {
    "kernels": 10,
    "kernel_size": 51,
    "radius_max": 25.0,
    "prior_channels": (24, 40, 80, 128, 128),
    "prior_sees_blur": True,
    "estimator_channels": (32, 64, 96),
}
RADIUS_MAX = 25.0  # pixels, of the pairs
CLIP = 1.0
RELATIVE, FREQUENCY, RADIUS, PERCEPTUAL = 0.015, 0.3, 0.3, 0.3
TERMS = ("loss", "restored", "frequency", "radius", "lpips")


@dataclass(frozen=True)
class Recipe:
    """How a training goes.

    Attributes:
        sizes: from which share of the time on: pairs in a batch, side of the crops.
        alone: share of the time in which the estimator learns alone.
        rate: the greatest learning rate.
        ema: decay of the averaged weights per step.
        margin: pixels around each crop that are rendered, too; 0 for what the blur needs.
        blend: share of the averaged weights in the final ones; the rest are those it began with.
    """

    sizes: tuple[tuple[float, int, int], ...]
    alone: float
    rate: float
    ema: float
    margin: int
    blend: float


BEGIN = Recipe(((0.0, 48, 192), (0.4, 32, 256), (0.8, 16, 384)), 0.05, 1e-3, 0.999, 0, 1.0)
LEARN_ON = Recipe(((0.0, 4, 192), (0.6, 3, 256)), 0.0, 4e-4, 0.998, 32, 0.7)


def config() -> ErAConfig:
    """The network for photographs."""
    return named_config("tiny", **CONFIG)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("photos", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--begin", type=Path, help="weights to learn on from")
    parser.add_argument("--perceptual", help="AlexNet's weights, for LPIPS in the loss")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    train(asked, LEARN_ON if asked.begin else BEGIN, load(asked.photos, asked.device))


def load(folder: Path, device: str, wanted: Callable[[str], bool] = lambda _: True) -> list[Tensor]:
    """The photographs as (3, H, W) uint8 on the device, in order of their names."""
    pictures = (file for file in folder.iterdir() if file.suffix in (".jpg", ".png"))
    files = sorted(file for file in pictures if wanted(file.name))
    pixels = (np.array(Image.open(file).convert("RGB")) for file in files)
    return [torch.from_numpy(p).permute(2, 0, 1).contiguous().to(device) for p in pixels]


def train(asked: argparse.Namespace, recipe: Recipe, photos: list[Tensor]) -> None:
    """Train, and write the averaged weights every minute and at the end."""
    torch.manual_seed(asked.seed)
    torch.set_float32_matmul_precision("high")
    model = ErA(config())
    if asked.begin:
        model.load_state_dict(load_file(asked.begin))
    model = model.to(asked.device, memory_format=torch.channels_last).train()
    groups = list(parameter_groups(model, 20.0))
    optimizer = torch.optim.AdamW(groups, recipe.rate, betas=(0.9, 0.99), weight_decay=1e-4)
    parameters = list(model.parameters())
    first = [p.detach().clone() for p in parameters]
    average = [p.clone() for p in first]
    pairs = CameraPairs(photos, RADIUS_MAX, asked.seed)
    pairs.margin = recipe.margin or pairs.margin
    lpips = load_lpips(asked.perceptual).to(asked.device) if asked.perceptual else None
    begun, saved, step, sums = time.monotonic(), 0.0, 0, torch.zeros(5, device=asked.device)
    log = (asked.out / "log.jsonl").open("a")
    while (elapsed := time.monotonic() - begun) < asked.seconds:
        progress = elapsed / asked.seconds
        _, count, size = next(s for s in reversed(recipe.sizes) if progress >= s[0])
        batch = pairs.batch(step, count, size)
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate * rate(progress) * float(group["rate"])
        terms = losses(model, batch, progress < recipe.alone, lpips)
        optimizer.zero_grad(set_to_none=True)
        terms[0].backward()
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.nan_to_num_(0.0, 0.0, 0.0)
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        decay = min(recipe.ema, (1 + step) / (10 + step))
        torch._foreach_lerp_(average, [p.detach() for p in parameters], 1 - decay)
        sums += torch.stack([t.detach() for t in terms])
        step += 1
        if step % 50 == 0:
            row = {"step": step, "s": round(elapsed, 1), "size": size}
            row |= zip(TERMS, (sums / 50).tolist(), strict=True)
            sums.zero_()
            print(json.dumps(row, default=float), file=log, flush=True)
            if step % 200 == 0:
                print(row, flush=True)
        if elapsed - saved > 60:
            saved = elapsed
            save(asked.out, model, average)
    torch._foreach_lerp_(first, average, recipe.blend)
    save(asked.out, model, first)
    print(f"{step} steps in {time.monotonic() - begun:.0f} s", flush=True)


def losses(model: ErA, batch: Batch, alone: bool, lpips: Lpips | None) -> list[Tensor]:
    """The loss and its terms, in the order of `TERMS`."""
    blur = batch.blur.contiguous(memory_format=torch.channels_last)
    device = blur.device.type
    with torch.autocast(device, dtype=torch.bfloat16, enabled=half(device)):
        if alone:
            weights = model.estimate(blur).weights(0, 0, *blur.shape[-2:])
            radius = radius_loss(weights, model.estimator.radii, batch.radius).mean()
            zero = torch.zeros_like(radius)
            return [radius, zero, zero, radius, zero]
        output = model(blur)
        seen = output.restored.new_zeros(())
        if lpips:
            seen = lpips(output.restored, batch.sharp).float().mean()
    error = output.restored.float() - batch.sharp
    before = (blur - batch.sharp).abs().mean(dim=(1, 2, 3)) + RELATIVE
    restored = (error.abs().mean(dim=(1, 2, 3)) / before).mean()
    waves = torch.fft.rfft2(error, norm="ortho")
    frequency = (waves.real.abs() + waves.imag.abs()).mean(dim=(1, 2, 3))
    frequency = (frequency / before).mean()
    radius = radius_loss(output.weights.float(), model.estimator.radii, batch.radius).mean()
    total = restored + FREQUENCY * frequency + RADIUS * radius + PERCEPTUAL * seen
    return [total, restored, frequency, radius, seen]


def half(device: str) -> bool:
    """Whether bfloat16 is fast: not on processors that only imitate it."""
    return device == "cuda" or not imitated("bf16", torch.device(device))


def rate(progress: float) -> float:
    """Share of the greatest rate: warm-up over 2 % of the time, then a cosine."""
    return min(1.0, (progress + 1e-3) / 0.02) * (0.5 + 0.5 * math.cos(math.pi * progress))


def save(out: Path, model: ErA, average: list[Tensor]) -> None:
    """Write the averaged weights."""
    names = [name for name, _ in model.named_parameters()]
    tensors = {n: t.contiguous().cpu() for n, t in zip(names, average, strict=True)}
    part = out / "weights.part"
    save_file(tensors, part)
    part.rename(out / "weights.safetensors")


if __name__ == "__main__":
    main()
