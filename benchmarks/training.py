"""What the pipeline costs on top of a bare PyTorch loop.

    python -m benchmarks.training

The same network, loss, clipping and optimiser: once in a bare loop over tensors in memory, without
averaged weights, metrics or checkpoints, once as `era train`. Runs alternate, so that a drifting
machine strikes both; medians are reported.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

import era
from benchmarks.loader import s3
from benchmarks.table import machine, markdown, record
from pipeline.config import TrainConfig, load_train_config
from pipeline.preprocess import preprocess
from pipeline.synthesize import synthesize
from pipeline.train import train
from pipeline.train.driver_channel import Event
from pipeline.train.state import TrainState

STEPS, WARM, BATCH, PATCH, ROUNDS = 40, 10, 4, 128, 3


def config_of(data: str, root: Path, name: str, *overrides: str) -> TrainConfig:
    """Joint steps only, no validation images, a checkpoint at the end."""
    return load_train_config(
        "tiny",
        [
            f"run.root={root}",
            f"run.name={name}",
            f"data.train={data}/train",
            f"train.steps={STEPS}",
            f"train.global_batch={BATCH}",
            f"train.patch=[{PATCH}]",
            "train.estimator_share=0",
            "train.prior_share=0",
            "tracking.log_every=1",
            "tracking.wandb=disabled",
            f"checkpoint.every={STEPS}",
            "scaling.workers=1",
            *overrides,
        ],
    )


def bare(config: TrainConfig) -> float:
    """Samples per second of a plain PyTorch loop over tensors in memory."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    batch, size = config.train.global_batch, config.train.patch[0]
    model = era.ErA(era.named_config(config.model.size))
    layout = torch.channels_last if config.train.channels_last else torch.contiguous_format
    model.to(memory_format=layout).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.train.learning_rate)
    blur, sharp = (x.contiguous(memory_format=layout) for x in torch.rand(2, batch, 3, size, size))
    radius = torch.full((batch, 1, size, size), 3.0)
    seconds = []
    for _ in range(config.train.steps):
        began = time.monotonic()
        output = model(blur, reblur=config.loss.omega < 1)
        weights = config.loss.omega, config.loss.radius
        loss = era.era_loss(output, blur, sharp, *weights, radius, model.estimator.radii)
        loss.total.mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.train.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.monotonic() - began)
    return batch / statistics.median(seconds[WARM:])


def pipeline(config: TrainConfig) -> tuple[float, float]:
    """Samples per second of `era train`, and seconds from its call to its first step."""
    seen: list[tuple[float, Event]] = []
    began = time.monotonic()
    train(config, on_event=lambda event: seen.append((time.monotonic(), event)))
    rates = [e.metrics["train/samples_per_second"] for _, e in seen if e.metrics]
    first = next(at for at, event in seen if event.line)
    return statistics.median(rates[WARM:]), first - began


def two_at_once() -> float:
    """Samples per second of two bare loops side by side, each one thread, together."""
    program = (
        "import sys; from benchmarks.training import *;"
        "print(bare(config_of('unused', Path('unused'), 'bare')))"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    return sum(float(process.communicate()[0].split()[-1]) for process in running)


def checkpoint_cost(config: TrainConfig) -> tuple[float, float]:
    """Milliseconds that saving holds up the training thread, and that the writing takes."""
    from pipeline.checkpoint import CheckpointStore

    state = TrainState(config, torch.device("cpu"))
    state.model.train()
    held, whole = [], []
    with tempfile.TemporaryDirectory() as folder:
        store = CheckpointStore(folder)
        for step in range(1, 6):
            began = time.monotonic()
            store.save(
                step=step,
                model=state.weights(),
                training=state.training(),
                meta={"step": step, "model": state.model.config.to_dict()},
                files={},
                metrics={},
            )
            held.append(time.monotonic() - began)
            store.wait()
            whole.append(time.monotonic() - began)
    return 1000 * statistics.median(held), 1000 * statistics.median(whole)


def main() -> None:
    """Measure and record."""
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        ratios(make_data(scratch), scratch)


def make_data(scratch: Path) -> str:
    """Synthetic shards."""
    synthesize("bundled", str(scratch / "pairs"), 20)
    shards = scratch / "buckets" / "data"
    preprocess("dpdd", str(scratch / "pairs"), str(shards))
    return str(shards)


def ratios(data: str, scratch: Path) -> None:
    """Measure and record the ratios, on processors."""
    rows: dict[str, list[float]] = {}
    starts: list[float] = []

    def add(name: str, value: float) -> None:
        rows.setdefault(name, []).append(value)

    with s3(scratch / "buckets") as bucket:
        for round_ in range(ROUNDS):
            root = scratch / f"round{round_}"
            plain = bare(config_of(data, root, "bare"))
            local, start = pipeline(config_of(data, root, "local"))
            starts.append(start)
            cache = f"cache.dir={scratch / 'cache'}"
            remote, _ = pipeline(config_of(bucket, root, "s3", cache))
            strict, _ = pipeline(config_of(data, root, "strict", "train.deterministic=strict"))
            two, _ = pipeline(
                config_of(data, root, "two", "scaling.workers=2", f"train.global_batch={2 * BATCH}")
            )
            pair = two_at_once()
            add("bare loop, samples/s", plain)
            add("era train, local shards / bare loop", local / plain)
            add("era train, warm S3 cache / bare loop", remote / plain)
            add("strict / deterministic", strict / local)
            add("two workers / twice one worker", two / (2 * local))
            add("two bare loops at once / twice one (what the machine gives)", pair / (2 * plain))
            add("two workers / two bare loops at once", two / pair)
    held, whole = checkpoint_cost(config_of(data, scratch, "checkpoint"))
    table = [[k, statistics.median(v), min(v), max(v)] for k, v in rows.items()]
    text = [
        f"{machine()}. Size tiny, batches of {BATCH} crops of {PATCH} px per worker, one thread "
        f"each, joint phase; {ROUNDS} rounds in turn; `python -m benchmarks.training`.",
        "",
        markdown(("", "median", "least", "most"), table),
        "",
        f"A checkpoint holds the training thread up for {held:.0f} ms; the background thread needs "
        f"{whole:.0f} ms. From the call of `era train` on a warm cluster to its first step: "
        f"{statistics.median(starts[1:]):.1f} s, the time that resuming takes.",
    ]
    record("Training", "\n".join(text))


if __name__ == "__main__":
    main()
