"""A network on real pairs of pictures: gains, intervals, a table picture by picture, a page.

    python -m benchmarks.real DIR [--out OUT] [--checkpoint URL] [--lpips-weights FILE]

DIR holds ``NAME_source.png`` (out of focus) and ``NAME_target.png`` (in focus); further
``NAME_METHOD.png`` are outputs of other methods and stand beside. OUT/gallery.html has sliders and
radius maps. Such pairs are for measuring: nothing may learn from them.
"""

from __future__ import annotations

import argparse
import logging
import shutil
from pathlib import Path
from typing import Any

from benchmarks.table import markdown, record
from pipeline.errors import UserError
from pipeline.evaluate import evaluate
from pipeline.evaluate.run import interval
from pipeline.preprocess import preprocess

SOURCE, TARGET = "source", "target"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("pairs", type=Path, metavar="DIR")
    parser.add_argument("--out", type=Path, default=Path("runs/real"))
    parser.add_argument("--checkpoint", default="photographs")
    parser.add_argument("--lpips-weights", default="")
    parser.add_argument("--title", help="also put the table into RESULTS.md under this title")
    asked = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        text = measure(asked.pairs, asked.out, asked.checkpoint, asked.lpips_weights)
    except UserError as error:
        parser.error(str(error))
    record(asked.title, text) if asked.title else print(text)


def measure(pairs: Path, out: Path, checkpoint: str, lpips_weights: str = "") -> str:
    """Evaluate a network on the pairs of a folder; return the tables in Markdown.

    Raises:
        UserError: if there are no pairs, or one lacks its other half.
    """
    methods = arrange(pairs, out / "pictures")
    preprocess("dpdd", str(out / "pictures"), str(out / "shards"))
    against = [f"{name}={out / 'pictures' / name}" for name in methods]
    found = evaluate(
        checkpoint,
        str(out / "shards" / "test"),
        str(out),
        lpips_weights=lpips_weights,
        against=against,
    )
    return f"{means(found.rows, found.summary)}\n\n{pictures(found.rows, methods)}"


def arrange(pairs: Path, out: Path) -> list[str]:
    """Copy the pairs into DPDD's layout, other methods' outputs into folders; return these."""
    names = sorted(file.stem.removesuffix(f"_{SOURCE}") for file in pairs.glob(f"*_{SOURCE}.png"))
    if not names:
        raise UserError(f"{pairs}: no NAME_{SOURCE}.png there")
    shutil.rmtree(out, ignore_errors=True)
    methods: dict[str, int] = {}
    for name in names:
        if not (pairs / f"{name}_{TARGET}.png").is_file():
            raise UserError(f"{pairs}: {name}_{SOURCE}.png has no {name}_{TARGET}.png")
        for file in sorted(pairs.glob(f"{name}_*.png")):
            kind = file.stem.removeprefix(f"{name}_")
            folder = out / (f"test_c/{kind}" if kind in (SOURCE, TARGET) else kind)
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, folder / f"{name}.png")
            if kind not in (SOURCE, TARGET):
                methods[kind] = methods.get(kind, 0) + 1
    return [kind for kind, count in methods.items() if count == len(names)]


def means(rows: list[dict[str, Any]], summary: dict[str, Any]) -> str:
    """Means, gains with 95 % intervals, and how many pictures got worse."""
    lines = []
    methods = {"restored": "", **{name: f"{name}_" for name in summary.get("against", {})}}
    for method, prefix in methods.items():
        line: list[object] = [method]
        for score, sign in (("psnr", 1), ("ssim", 1), ("lpips", -1)):
            values = [row.get(prefix + score) for row in rows]
            blurred = [row.get(f"{score}_blurred") for row in rows]
            if not all(isinstance(v, float) for v in (*values, *blurred)):
                line += ["-", "-"]
                continue
            gains = [sign * (a - b) for a, b in zip(values, blurred, strict=True)]  # type: ignore[operator]
            mean = sum(gains) / len(gains)
            low, high = interval(gains) if len(gains) > 1 else (mean, mean)
            line += [f"{sum(values) / len(values):.3f}", f"{mean:+.3f} ({low:+.3f} to {high:+.3f})"]  # type: ignore[arg-type]
            if score == "psnr":
                line.append(sum(gain < -0.1 for gain in gains))
        lines.append(line)
    columns = ["pictures", "PSNR", "gain, dB", "worse by > 0.1 dB", "SSIM", "gain", "LPIPS", "gain"]
    return markdown(columns, lines)


def pictures(rows: list[dict[str, Any]], methods: list[str]) -> str:
    """The gains of every picture."""
    columns = ["picture", "blurred, dB", "restored", "gain", *(f"{name}, gain" for name in methods)]
    lines = []
    for row in rows:
        blurred = row["psnr_blurred"]
        others = [f"{row[f'{name}_psnr'] - blurred:+.2f}" for name in methods]
        gain = f"{row['gain']:+.2f}"
        lines.append([row["name"], f"{blurred:.2f}", f"{row['psnr']:.2f}", gain, *others])
    return markdown(columns, lines)


if __name__ == "__main__":
    main()
