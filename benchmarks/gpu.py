"""Correctness and rates on one GPU, from a bare checkout with torch; no Ray.

    python3 -m benchmarks.gpu --out DIR [--seconds 480]
    python3 -m benchmarks.gpu --record DIR/gpu.json      # the table into RESULTS.md

First correctness: forward, backward and an optimiser step against float64 on the CPU, strict bits
twice, resumed bits, channels_last, torch.compile. Then rates, the most important first: what
`--seconds` leaves no time for is named as left out. On a CPU everything runs, small.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.table import markdown, record
from era import ErA, SpatiallyVaryingBlur, era_loss, named_config
from era.config import ErAConfig, replace_checked
from era.macs import cost

PATCH = 160  # pixels, as in configs/train/base.yaml
PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
# Relative errors that are rounding: of the restored picture, and of the whole gradient.
TOLERANCES = {
    "fp32": (1e-4, 2e-3),
    "tf32": (3e-3, 5e-2),
    "bf16": (2e-2, 2e-1),
    "fp16": (3e-3, 5e-2),
}
# Dense TFLOP/s by the vendor's data sheet.
PEAKS = {"H100": {"fp32": 67, "tf32": 495, "bf16": 989, "fp16": 989}}
PEAKS["H200"] = PEAKS["H100"]


@dataclass(frozen=True)
class Row:
    """A result: `ok` is None where nothing is promised."""

    part: str
    what: str
    found: str
    ok: bool | None = None


class Bench:
    """Runs parts until the time is up; a part that fails becomes a row."""

    def __init__(self, seconds: float, device: str) -> None:
        self.end, self.device, self.rows = time.monotonic() + seconds, device, list[Row]()
        self.small = device == "cpu"

    def run(self, part: str, what: str, work: Callable[[], tuple[str, bool | None]]) -> None:
        """Do a part and keep its row."""
        if time.monotonic() > self.end:
            self.rows.append(Row(part, what, "left out: no time"))
            return
        try:
            found, ok = work()
        except Exception as error:  # a row, not the end: the other parts still tell something
            lines = str(error).splitlines() or [""]
            found, ok = f"{type(error).__name__}: {lines[0][:160]}", False
        self.rows.append(Row(part, what, found, ok))
        print(f"{part}: {what}: {found}", flush=True)
        if not self.small:
            torch.cuda.empty_cache()


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--seconds", type=float, default=480)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--record", type=Path, metavar="JSON")
    asked = parser.parse_args()
    if asked.record:
        found = json.loads(asked.record.read_text())
        record("On a GPU", table(found["machine"], [Row(**row) for row in found["rows"]]))
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    bench = Bench(asked.seconds, asked.device)
    measure(bench)
    asked.out.mkdir(parents=True, exist_ok=True)
    text = table(card(asked.device), bench.rows)
    (asked.out / "gpu.md").write_text(text + "\n")
    found = {"machine": card(asked.device), "rows": [asdict(row) for row in bench.rows]}
    (asked.out / "gpu.json").write_text(json.dumps(found, indent=1) + "\n")
    print(text)


def measure(bench: Bench) -> None:
    """All parts, the most important first."""
    sizes = ("tiny",) if bench.small else ("tiny", "light", "base")
    for size in sizes:
        for precision in ("fp32",) if bench.small else PRECISIONS:
            bench.run(
                "correct", f"{size}, {precision}", lambda s=size, p=precision: close(bench, s, p)
            )
        bench.run("correct", f"{size}, strict bits", lambda s=size: strict(bench, s))
        bench.run("correct", f"{size}, resumed bits", lambda s=size: resumed(bench, s))
        bench.run("correct", f"{size}, channels_last", lambda s=size: layout(bench, s))
    for size in (*sizes, *(() if bench.small else ("paper",))):
        for precision in ("fp32",) if bench.small else reversed(PRECISIONS):
            bench.run(
                "training", f"{size}, {precision}", lambda s=size, p=precision: rate(bench, s, p)
            )
    for name in ("apply", "adjoint", "wiener"):
        bench.run("operator", name, lambda n=name: operator(bench, n))
    for pinned in (True, False):
        bench.run("loader", "pinned" if pinned else "pageable", lambda p=pinned: loader(bench, p))
    if not bench.small:
        bench.run("correct", "tiny, compiled", lambda: compiled_close(bench, "tiny"))
        for size in ("base", "tiny"):
            bench.run(
                "training", f"{size}, bf16, compiled", lambda s=size: rate(bench, s, "bf16", True)
            )


def config_of(size: str) -> ErAConfig:
    """The network of a training configuration."""
    import yaml

    path = Path(__file__).parents[1] / "configs" / "train" / f"{size}.yaml"
    model = yaml.safe_load(path.read_text())["model"]
    return replace_checked(named_config(model["size"]), model.get("overrides") or {})


def network(size: str, seed: int = 0) -> ErA:
    """A network in which nothing is zero, in training mode, float32 on the CPU.

    What starts at zero gets small values: larger ones grow over the stages until float16 overflows.
    """
    torch.manual_seed(seed)
    model = ErA(config_of(size)).train()
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.add_(1e-3 * torch.randn_like(parameter))
    return model


def batch(count: int, side: int, device: str, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Blurred, sharp and radius of smooth random pictures."""
    random = torch.Generator().manual_seed(1)
    coarse = torch.rand(count, 3, side // 8, side // 8, generator=random, dtype=torch.float64)
    sharp = torch.nn.functional.interpolate(coarse, (side, side), mode="bilinear")
    blur = torch.nn.functional.avg_pool2d(sharp, 5, 1, 2, count_include_pad=False)
    radius = torch.full((count, 1, side, side), 2.0, dtype=torch.float64)
    return [tensor.to(device, dtype) for tensor in (blur, sharp, radius)]


def loss_of(model: ErA, tensors: list[Tensor], precision: str = "fp32") -> Tensor:
    """The training loss, under the autocast of a precision."""
    blur, sharp, radius = tensors
    with autocast(blur.device.type, precision):
        output = model(blur, reblur=True)
    radii = model.estimator.radii
    return era_loss(output, blur, sharp, 0.5, 0.1, radius, radii).total.mean()


def autocast(device: str, precision: str) -> torch.autocast:
    """The autocast of a precision: none for float32 and TF32."""
    dtype = TYPES.get(precision, torch.bfloat16)
    return torch.autocast(device, dtype=dtype, enabled=precision in TYPES)


def allow_tf32(precision: str) -> None:
    """Let matrix products and convolutions round to TF32, or not."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision != "fp32"


def close(bench: Bench, size: str, precision: str) -> tuple[str, bool]:
    """Forward, backward and a step against float64 on the CPU."""
    allow_tf32(precision)
    model, side = network(size), 64
    exact = copy.deepcopy(model).double()
    model.to(bench.device)
    errors, after = [], []
    results = []
    for m, where, dtype, kind in (
        (exact, "cpu", torch.float64, "fp32"),
        (model, bench.device, torch.float32, precision),
    ):
        tensors = batch(2, side, where, dtype)
        with torch.no_grad(), autocast(where, kind):
            restored = m(tensors[0]).restored
        optimizer = torch.optim.AdamW(m.parameters(), 1e-4)
        loss = loss_of(m, tensors, kind)
        scale = 1024.0 if kind == "fp16" else 1.0
        (loss * scale).backward()
        grads = [p.grad / scale for p in m.parameters() if p.grad is not None]
        for p in m.parameters():
            p.grad = None if p.grad is None else p.grad / scale
        optimizer.step()
        with torch.no_grad():
            after.append(float(loss_of(m, tensors, kind)) - float(loss))
        results.append(
            (restored.double().cpu(), torch.cat([g.double().cpu().flatten() for g in grads]))
        )
    for a, b in zip(*results, strict=True):
        errors.append(float((a - b).norm() / a.norm()))
    allowed = TOLERANCES[precision]
    ok = all(e <= a for e, a in zip(errors, allowed, strict=True))
    step = f"loss falls by {-after[1]:.2e} in a step, {-after[0]:.2e} in float64"
    return (
        f"picture {errors[0]:.1e} of {allowed[0]:g}, "
        f"gradient {errors[1]:.1e} of {allowed[1]:g}; {step}",
        ok,
    )


def steps(model: ErA, optimizer: Any, tensors: list[Tensor], count: int) -> None:
    """Optimiser steps."""
    for _ in range(count):
        optimizer.zero_grad(set_to_none=True)
        loss_of(model, tensors).backward()
        optimizer.step()


class Deterministic:
    """torch's deterministic algorithms within a block."""

    def __enter__(self) -> None:
        allow_tf32("fp32")
        torch.use_deterministic_algorithms(True)

    def __exit__(self, *_: object) -> None:
        torch.use_deterministic_algorithms(False)


def trained(bench: Bench, size: str, count: int) -> tuple[ErA, Any, list[Tensor]]:
    """A network after `count` steps, its optimiser and the batch."""
    model = network(size).to(bench.device)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    tensors = batch(2, 64, bench.device)
    steps(model, optimizer, tensors, count)
    return model, optimizer, tensors


def equal(a: ErA, b: ErA) -> bool:
    """Whether two networks are equal to the bit."""
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


def strict(bench: Bench, size: str) -> tuple[str, bool]:
    """Three steps, twice, with deterministic algorithms."""
    with Deterministic():
        ok = equal(trained(bench, size, 3)[0], trained(bench, size, 3)[0])
    return "equal to the bit" if ok else "other bits", ok


def resumed(bench: Bench, size: str) -> tuple[str, bool]:
    """Four steps, and two, a saved and loaded state, and two more."""
    with Deterministic():
        whole = trained(bench, size, 4)[0]
        model, optimizer, tensors = trained(bench, size, 2)
        file = io.BytesIO()
        torch.save([model.state_dict(), optimizer.state_dict()], file)
        file.seek(0)
        other = network(size, seed=5).to(bench.device)
        again = torch.optim.AdamW(other.parameters(), 1e-3)
        states = torch.load(file, weights_only=True, map_location=bench.device)
        other.load_state_dict(states[0])
        again.load_state_dict(states[1])
        steps(other, again, tensors, 2)
    ok = equal(whole, other)
    return "equal to the bit" if ok else "other bits", ok


def difference(bench: Bench, size: str, change: Callable[[ErA], Any]) -> float:
    """The relative difference that a change makes to the restored picture."""
    allow_tf32("fp32")
    model = network(size).eval().to(bench.device)
    blur = batch(2, 64, bench.device)[0]
    with torch.no_grad():
        before = model(blur).restored
        after = change(model)(blur).restored
    return float((after - before).norm() / before.norm())


def layout(bench: Bench, size: str) -> tuple[str, bool]:
    """channels_last against contiguous."""
    error = difference(bench, size, lambda m: m.to(memory_format=torch.channels_last))
    return f"differs by {error:.1e}", error < 1e-4


def compiled_close(bench: Bench, size: str) -> tuple[str, bool]:
    """torch.compile against eager."""
    error = difference(bench, size, torch.compile)
    return f"differs by {error:.1e}", error < 1e-4


def seconds_of(bench: Bench, work: Callable[[], object], least: float = 1.5) -> float:
    """The mean time of `work` after two warm-ups, over `least` seconds."""
    work()
    work()
    _wait(bench)
    begun, count = time.perf_counter(), 0
    while (passed := time.perf_counter() - begun) < (0.1 if bench.small else least) or count < 2:
        work()
        count += 1
        if count % 4 == 0:
            _wait(bench)
    _wait(bench)
    return (time.perf_counter() - begun) / count if count else passed


def _wait(bench: Bench) -> None:
    if not bench.small:
        torch.cuda.synchronize()


def rate(bench: Bench, size: str, precision: str, compiled: bool = False) -> tuple[str, None]:
    """Samples per second of a training step, the share of the card's peak, and its memory."""
    allow_tf32(precision)
    count = 1 if bench.small else {"paper": 4, "base": 16}.get(size, 32)
    side = 64 if bench.small else PATCH
    model = network(size).to(bench.device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=not bench.small)
    tensors = batch(count, side, bench.device)
    called = torch.compile(model) if compiled else model
    if not bench.small:
        torch.cuda.reset_peak_memory_stats()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        (loss_of(called, tensors, precision) * 1024).backward()
        optimizer.step()

    per_second = count / seconds_of(bench, step)
    flops = 6 * cost(config_of(size), side, side).macs * per_second / 1e12
    found = f"{per_second:.0f} samples/s of {side} px, {flops:.1f} TFLOP/s"
    name = card(bench.device)
    for known, peaks in PEAKS.items():
        if known in name:
            found += f", MFU {100 * flops / peaks[precision]:.1f} %"
    if not bench.small:
        gigabytes = torch.cuda.max_memory_allocated() / 1e9
        found += f", peak {gigabytes:.2f} GB with {count}"
    return found, None


def operator(bench: Bench, name: str) -> tuple[str, None]:
    """H, its adjoint or the Wiener step beside a copy of what it reads and its FFTs alone."""
    allow_tf32("fp32")
    count, side, kernels = (1, 64, 4) if bench.small else (8, 512, 8)
    random = torch.Generator(bench.device).manual_seed(0)
    weights = torch.rand(count, kernels, side, side, generator=random, device=bench.device)
    bank = torch.rand(count, kernels, 41, 41, generator=random, device=bench.device)
    H = SpatiallyVaryingBlur(
        bank / bank.sum((-2, -1), keepdim=True), weights / weights.sum(1, True)
    )
    x = torch.rand(count, 3, side, side, generator=random, device=bench.device)
    work = {"apply": H.apply, "adjoint": H.adjoint, "wiener": lambda y: H.wiener(y, y, 0.1)}[name]
    stack = x[:, None].expand(-1, kernels, -1, -1, -1).contiguous()

    def ffts() -> None:
        torch.fft.irfft2(torch.fft.rfft2(stack), s=(side, side))

    with torch.no_grad():
        whole, transforms = seconds_of(bench, lambda: work(x)), seconds_of(bench, ffts)
        copied = seconds_of(bench, lambda: (weights.clone(), x.clone()))
    return (
        f"{1e3 * whole:.2f} ms for {count} x 3 x {side} x {side}, {kernels} kernels: "
        f"{whole / transforms:.2f} of the FFTs of its {kernels} products both ways, "
        f"{whole / copied:.0f} copies of weights and picture"
    ), None


def loader(bench: Bench, pinned: bool) -> tuple[str, None]:
    """uint16 crops to the device and to float32 in [0, 1]."""
    count, side = (2, 64) if bench.small else (64, 256)
    crops = torch.zeros(count, 3, side, side, dtype=torch.int32).to(torch.uint16)
    crops = crops.pin_memory() if pinned and not bench.small else crops

    def work() -> Tensor:
        return crops.to(bench.device, non_blocking=pinned).to(torch.float32) / 65535

    seconds = seconds_of(bench, work)
    return (
        f"{crops.numel() * 2 / seconds / 1e9:.2f} GB/s, {count / seconds:.0f} crops of {side} px/s",
        None,
    )


def card(device: str) -> str:
    """The card and the versions."""
    versions = f"torch {torch.__version__}"
    if device == "cpu":
        return f"CPU, {versions}"
    return f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}, {versions}"


def table(machine: str, rows: list[Row]) -> str:
    """All rows in Markdown, and how many of those that promise something hold."""
    promised = [row for row in rows if row.ok is not None]
    held = sum(bool(row.ok) for row in promised)
    lines = [
        [r.part, r.what, r.found, {None: "", True: "yes", False: "**no**"}[r.ok]] for r in rows
    ]
    head = f"{machine}. `python3 -m benchmarks.gpu`. {held} of {len(promised)} checks hold."
    return f"{head}\n\n{markdown(['part', 'what', 'found', 'right'], lines)}"


if __name__ == "__main__":
    main()
