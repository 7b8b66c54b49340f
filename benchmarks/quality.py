"""Does the network earn its place? ErA against plain networks at equal training time.

    python -m benchmarks.quality WORK --seconds 300 --seeds 0              # all contestants
    python -m benchmarks.quality WORK --seconds 1800 --seeds 0 1 2 --only era no-e unet
    python -m benchmarks.quality WORK --seconds 600 --only era no-e unet --camera PHOTOS

Each contestant learns from the same pairs for the same CPU time on one thread, at a learning rate
of 1e-3, the NAFNet-style one at 2e-3 (LABBOOK.md says what else was tried). WORK holds photographs
and pairs; what is measured is appended to `quality.jsonl` and never measured twice, so an
interrupted contest continues. Contestants run side by side where the command is given twice with
different `--only`; that slows both, so all of one seed run so, and on one machine. With `--camera`
the pairs are like a camera's, where E has work: light beyond full scale, occluders, noise, JPEG.
PHOTOS holds sharp photographs, as `benchmarks.photograph_list` fetches them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.contest import (
    BATCH,
    CROP,
    INPUT_DB,
    PAIRS,
    SIDE,
    Pairs,
    Recipe,
    camera_pairs,
    image,
    milliseconds,
    pairs,
    photographs_for_tests,
    score,
    train,
)
from benchmarks.plain import NafNet
from benchmarks.table import machine, markdown, record
from era import ErA, named_config, parameter_groups
from era.macs import macs_of, parameter_count
from era.unet import UNet
from pipeline.config import load_train_config
from pipeline.errors import UserError
from pipeline.evaluate.calibration import calibration, table
from pipeline.evaluate.run import interval
from pipeline.report.pictures import svg
from pipeline.train.objective import Objective, phase_of

ROWS = Path(__file__).with_name("quality.jsonl")
PICTURES = Path(__file__).parents[1] / "docs" / "images"
CAMERA = "camera"
GOAL = 0.39  # dB over the best plain network
PLAIN = ("unet", "unet-wide", "nafnet")
RECIPE = load_train_config("tiny")
TINY = named_config(RECIPE.model.size)
NETWORKS: dict[str, tuple[str, Callable[[], nn.Module]]] = {
    "era": ("ErA, `tiny`", lambda: ErA(TINY)),
    "no-e": ("ErA without E", lambda: ErA(replace(TINY, error_term=False))),
    "x-printed": ("ErA, X as printed", lambda: ErA(replace(TINY, x_form="paper"))),
    "era-2": ("ErA, two stages", lambda: ErA(replace(TINY, stages=2))),
    "p-printed": (
        "ErA, two stages, P as printed",  # P reaches X from the second stage on
        lambda: ErA(replace(TINY, stages=2, p_form="paper")),
    ),
    "priors": ("ErA, priors only", lambda: ErA(replace(TINY, data_step=False))),
    "nafnet": ("NAFNet-style", lambda: NafNet(16, 3)),
    "unet": ("plain U-Net 16-32-64", lambda: UNet((16, 32, 64))),
    "unet-wide": ("plain U-Net 32-64-128", lambda: UNet((32, 64, 128))),
}


def recipe(name: str) -> Recipe:
    """How a contestant learns."""
    if isinstance(NETWORKS[name][1](), ErA):
        scalar_rate = RECIPE.train.scalar_rate
        return Recipe(
            era_step,
            RECIPE.train.learning_rate,
            lambda model: list(parameter_groups(model, scalar_rate)),
        )
    rate = {"nafnet": 2e-3, "unet": 1e-3, "unet-wide": 1e-3}[name]
    return Recipe(plain_step, rate, lambda model: [{"params": model.parameters(), "rate": 1.0}])


def plain_step(model: nn.Module, blur: Tensor, sharp: Tensor, _radius: Tensor, _: float) -> Tensor:
    """|X - X_gt|_1."""
    loss: Tensor = (model(blur) - sharp).abs().mean()
    return loss


def era_step(model: nn.Module, blur: Tensor, sharp: Tensor, radius: Tensor, over: float) -> Tensor:
    """The phases and the loss of `configs/train/tiny.yaml`."""
    assert isinstance(model, ErA)
    phase = phase_of(over * RECIPE.train.steps, RECIPE.train, radius_known=True)
    loss, _ = Objective(model, RECIPE.loss)(blur, sharp, radius, phase)
    return loss.total.mean()


def measure(
    name: str, work: Path, seconds: float, seed: int, photos: Path | None = None
) -> dict[str, Any]:
    """Train one contestant and score it."""
    data, test = (
        camera_pairs(work, split, photos) if photos else pairs(work, split)
        for split in ("train", "test")
    )
    torch.manual_seed(seed)
    model = NETWORKS[name][1]().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    trained = train(model, recipe(name), data, test, seconds, seed)
    scores = score(model, test)
    return {
        "network": name,
        "seconds": seconds,
        "seed": seed,
        **({"pairs": CAMERA} if photos else {}),
        "machine": machine(),
        "parameters": parameter_count(model),
        "gmacs": sum(macs_of(model, 256, 256)) / 1e9,
        "steps": trained.steps,
        "curve": trained.curve,
        "psnr_blurred": [one.psnr_blurred for one in scores],
        "psnr": [one.psnr for one in scores],
        "ssim_blurred": [one.ssim_blurred for one in scores],
        "ssim": [one.ssim for one in scores],
        "mixed_gain": []
        if photos
        else [one.gain for one in score(model, pairs(work, "test", mixed_psf=True))],
        "prediction": prediction(model, test) if isinstance(model, ErA) else [],
    }


@torch.no_grad()
def prediction(model: ErA, test: Pairs) -> list[dict[str, Any]]:
    """The estimated radius and E against the truth."""
    rows = []
    for blur, _, radius in zip(*test, strict=True):
        Y = image(blur)
        output = model(Y.contiguous(memory_format=torch.channels_last))
        estimated = model.radius(output.weights)[0, 0].numpy()
        maps = (part[0].permute(1, 2, 0).numpy() for part in (output.error, Y))
        rows.append(calibration(estimated, radius / np.float32(256), *maps))
    return table(rows)


def contest(
    names: list[str], work: Path, seconds: float, seeds: list[int], photos: Path | None = None
) -> None:
    """Measure what was not measured before; every result is kept at once."""
    for seed in seeds:
        for name in names:
            known = {(row["network"], row["seed"]) for row in rows(seconds, photos is not None)}
            if (name, seed) not in known:
                line = json.dumps(measure(name, work, seconds, seed, photos))
                with ROWS.open("a") as file:
                    file.write(line + "\n")


def rows(seconds: float, camera: bool) -> list[dict[str, Any]]:
    """What was measured after this time on this kind of pairs."""
    every = [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []
    return [
        row for row in every if row["seconds"] == seconds and (row.get("pairs") == CAMERA) == camera
    ]


def tell(seconds: float, camera: bool = False) -> None:
    """Put a table of all networks that learned for `seconds` into RESULTS.md, and draw them."""
    found = rows(seconds, camera)
    by_network = {name: [r for r in found if r["network"] == name] for name in NETWORKS}
    present = {name: runs for name, runs in by_network.items() if runs}
    cost = costs(list(present))
    machines = "; ".join(sorted({row["machine"] for row in found}))
    text = [
        f"{machines}, one thread for each network. {len(found[0]['psnr'])} test pictures of {SIDE} "
        f"px from {photographs(camera)} photographs that none has seen (of {PAIRS['test']} made, "
        f"those that the blur leaves at {INPUT_DB[0]:g} to {INPUT_DB[1]:g} dB), blurred "
        f"{np.mean(found[0]['psnr_blurred']):.2f} dB, SSIM {np.mean(found[0]['ssim_blurred']):.3f};"
        f" crops of {CROP} px in batches of {BATCH}; "
        "float32, since not every processor has bf16. Means over pictures and seeds, in brackets "
        "the 95 % bootstrap interval over the pictures (their mean over the seeds), which does not "
        f"cover the choice of photographs. `{command(seconds, camera, present)}`, after "
        f"{ROWS.name} was moved away: what it holds is not measured again.",
        "",
        markdown(COLUMNS, [line(name, runs, cost[name]) for name, runs in present.items()]),
    ]
    if "era" in present:
        text += ["", verdict(present)]
        rows_of_era = present["era"][0]["prediction"]
        columns = list(rows_of_era[0])
        text += ["", "What ErA's estimates are worth (first seed):", ""]
        text += [markdown(columns, [list(row.values()) for row in rows_of_era])]
    picture = f"quality-{CAMERA + '-' if camera else ''}{seconds:g}.svg"
    text += ["", f"![Gain over CPU seconds](../docs/images/{picture})"]
    text += ["", "The curves are means over the seeds, on a part of the pictures."]
    curves = {
        NETWORKS[name][0]: [(a, b) for a, b in np.mean([run["curve"] for run in runs], axis=0)]
        for name, runs in present.items()
    }
    drawn = svg(curves, legend=True, size=(8.0, 4.0), over="CPU seconds; gain in dB")
    on_white = drawn.replace("<svg ", '<svg style="background: white" ', 1)
    (PICTURES / picture).write_text(on_white)
    kind = " on pairs like a camera's" * camera
    record(f"Quality{kind} after {seconds / 60:g} CPU minutes", "\n".join(text))


def photographs(camera: bool) -> int:
    """How many photographs the test pictures are cut from."""
    here = Path(__file__).parent
    if camera:
        return len(photographs_for_tests())
    lines = (here / "photos.txt").read_text().splitlines()
    return sum(line.startswith("test\t") for line in lines)


def command(seconds: float, camera: bool, present: dict[str, list[dict[str, Any]]]) -> str:
    """What measures the table's rows."""
    seeds = sorted({run["seed"] for runs in present.values() for run in runs})
    only = "" if len(present) == len(NETWORKS) else f" --only {' '.join(present)}"
    return (
        f"python -m benchmarks.quality WORK --seconds {seconds:g} --seeds "
        f"{' '.join(map(str, seeds))}{only}{' --camera PHOTOS' * camera}"
    )


def costs(names: list[str]) -> dict[str, float]:
    """CPU ms of each network, in turn and within one process, since rows are from many.

    The best of five rounds: neighbours on a shared machine only ever slow. What a network has
    learned does not change its cost.
    """
    models = {name: NETWORKS[name][1]().eval() for name in names}
    rounds = [{name: milliseconds(model) for name, model in models.items()} for _ in range(5)]
    return {name: min(found[name] for found in rounds) for name in names}


COLUMNS = ("network", "seeds", "gain, dB", "PSNR, dB", "SSIM", "worst, dB", "mixed PSFs, dB")
COLUMNS += ("steps", "ms, 256 px", "parameters", "GMAC, 256 px")


def line(name: str, runs: list[dict[str, Any]], ms: float) -> list[object]:
    """A row of the table."""
    gain = picture_gains(runs)
    low, high = interval(list(gain))
    first = runs[0]
    return [
        NETWORKS[name][0],
        len(runs),
        f"{gain.mean():+.2f} ({low:+.2f} to {high:+.2f})",
        f"{np.mean([run['psnr'] for run in runs]):.2f}",
        f"{np.mean([run['ssim'] for run in runs]):.3f}",
        f"{gain.min():+.2f}",
        f"{np.mean([run['mixed_gain'] for run in runs]):+.2f}" if first["mixed_gain"] else "-",
        round(np.mean([run["steps"] for run in runs])),
        f"{ms:.0f}",
        f"{first['parameters']:,}",
        f"{first['gmacs']:.2f}",
    ]


def verdict(present: dict[str, list[dict[str, Any]]]) -> str:
    """ErA against the best plain network, and against itself without E; the goal, met or missed."""
    seeds = {run["seed"] for run in present["era"]}
    beside = {n: [run for run in runs if run["seed"] in seeds] for n, runs in present.items()}
    rivals = {n: picture_gains(beside[n]).mean() for n in PLAIN if beside.get(n)}
    told = []
    if rivals:
        ahead, words = lead(beside, max(rivals, key=rivals.__getitem__))
        word = "met" if ahead >= GOAL else "missed"
        told += [words + " No plain network here is better than that one." * (len(rivals) > 1)]
        told += [f"The goal of +{GOAL} dB over a plain network is **{word}**."]
    if beside.get("no-e"):
        told += [lead(beside, "no-e")[1]]
    return "\n\n".join(told)


def lead(present: dict[str, list[dict[str, Any]]], other: str) -> tuple[float, str]:
    """By how many dB ErA is ahead of another network, picture by picture, and the same in words.

    Over the seeds that both have.
    """
    both = [{run["seed"]: run for run in present[name]} for name in ("era", other)]
    seeds = sorted(both[0].keys() & both[1].keys())
    ours, theirs = ([runs[seed] for seed in seeds] for runs in both)
    ahead = picture_gains(ours) - picture_gains(theirs)
    low, high = interval(list(ahead))
    text = f"ErA minus {NETWORKS[other][0]}: {ahead.mean():+.2f} dB ({low:+.2f} to {high:+.2f}), "
    text += f"better on {int((ahead > 0).sum())} of {len(ahead)} pictures."
    if len(seeds) > 1:
        by_seed = (
            np.mean(a["psnr"]) - np.mean(b["psnr"]) for a, b in zip(ours, theirs, strict=True)
        )
        text += f" By seed: {', '.join(f'{one:+.2f}' for one in by_seed)}."
    return float(ahead.mean()), text


def picture_gains(runs: list[dict[str, Any]]) -> np.ndarray[Any, Any]:
    """The gain of every picture in dB, its mean over the seeds."""
    return np.mean([np.subtract(run["psnr"], run["psnr_blurred"]) for run in runs], axis=0)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("work", type=Path, help="folder for photographs and pairs")
    parser.add_argument("--seconds", type=float, default=300.0, help="CPU time of each training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--camera", type=Path, metavar="PHOTOS", help="pairs like a camera's")
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.work.mkdir(parents=True, exist_ok=True)
    try:
        contest(given.only, given.work, given.seconds, given.seeds, given.camera)
    except UserError as error:
        parser.error(str(error))
    tell(given.seconds, given.camera is not None)


if __name__ == "__main__":
    main()
