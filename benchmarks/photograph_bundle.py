"""Make the shipped network `photographs` of trained weights.

    python -m benchmarks.photograph_bundle OUT [--to DIR]

OUT is what `benchmarks.photograph_network` left. DIR (default: pipeline/models/photographs) becomes
a bundle; its card takes the sections of benchmarks/photographs.md.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import yaml
from safetensors.torch import load_file

from benchmarks.photograph_network import CONFIG, config
from era import ErA, parameter_count
from pipeline import __version__, storage
from pipeline.checkpoint.loading import SHIPPED
from pipeline.images import write_png
from pipeline.inference import restore_array
from pipeline.report import false_colours
from pipeline.runfolder import fingerprint, write_commit
from pipeline.runfolder.names import CONFIG as CONFIG_FILE
from pipeline.runfolder.names import META, MODEL
from pipeline.runs.pull import CARD

NAME = "photographs"
PICTURE = Path(__file__).parents[1] / "docs" / "images" / "really_out_of_focus.png"
TEXT = Path(__file__).with_name("photographs.md")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("trained", type=Path, metavar="OUT")
    parser.add_argument("--to", type=Path, default=SHIPPED / NAME)
    parser.add_argument("--revision", default="", help="of the code that trained it")
    parser.add_argument("--after", type=int, default=0, help="steps of trainings before")
    asked = parser.parse_args()
    bundle(asked.trained, asked.to, asked.revision, asked.after)


def bundle(trained: Path, to: Path, revision: str, after: int) -> None:
    """Write the bundle, COMMIT last, and the documentation's picture."""
    model = ErA(config())
    model.load_state_dict(load_file(trained / "weights.safetensors"))
    step = json.loads((trained / "log.jsonl").read_text().splitlines()[-1])["step"] + after
    meta = {
        "format": "era-checkpoint/1",
        "step": step,
        "model": model.config.to_dict(),
        "git": revision or None,
        "versions": {"era": __version__},
    }
    overrides = {k: list(v) if isinstance(v, tuple) else v for k, v in CONFIG.items()}
    settings = {"run": {"name": NAME}, "model": {"size": "tiny", "overrides": overrides}}
    files = {
        MODEL: (trained / "weights.safetensors").read_bytes(),
        META: json.dumps(meta, indent=1).encode(),
        CONFIG_FILE: yaml.safe_dump(settings, sort_keys=False).encode(),
        CARD: TEXT.read_bytes(),
    }
    for name, data in files.items():
        storage.write_bytes(str(to / name), data)
    write_commit(str(to), step, {}, {name: fingerprint(data) for name, data in files.items()})
    draw(model.eval())
    print(f"{to}: {parameter_count(model):,} parameters, step {step}")


def draw(model: ErA) -> None:
    """A place that is really out of focus, restored, and the radius; there is no ground truth."""
    import cv2
    import skimage.data

    photo = skimage.data.chelsea()
    found = restore_array(model, photo)
    shown = (photo, found.pixels, false_colours(found.radius, None))
    parts = [cv2.resize(part[90:, 230:], None, fx=2, fy=2) for part in shown]
    write_png(str(PICTURE), np.hstack(parts))


if __name__ == "__main__":
    main()
