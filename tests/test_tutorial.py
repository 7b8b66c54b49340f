"""docs/tutorial.md on one machine: every command of its first three parts, at small sizes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from small_run import SMALL_NETWORK

TUTORIAL = (Path(__file__).parents[1] / "docs" / "tutorial.md").read_text()
LOCAL = TUTORIAL.partition("## 4. On a cluster")[0]
SMALL = (
    f"'{SMALL_NETWORK}' data.crops_per_image=3 train.global_batch=4 train.patch=[24] "
    "train.steps=6 train.validate_every=3 checkpoint.every=3 tracking.wandb=disabled"
)
SMALLER = {
    "--pairs 100": "--pairs 9 --size 64x48 --radius-max 3",
    "run.name=first": f"run.name=first {SMALL}",
    "run.name=search": f"run.name=search {SMALL}",
}


@pytest.mark.full
@pytest.mark.timeout(1800)
def test_every_command_of_the_tutorial(tmp_path: Path) -> None:
    blocks = re.findall(r"```sh\n(.*?)```", LOCAL, re.DOTALL)
    assert len(blocks) == LOCAL.count("```") // 2
    script = "".join(blocks)
    for placed, small in SMALLER.items():
        assert placed in script
        script = script.replace(placed, small)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "RAY_"))}
    done = subprocess.run(
        ["bash", "-euxo", "pipefail", "-c", script],
        cwd=tmp_path,
        env={**environment, "PATH": path, "RAY_USAGE_STATS_ENABLED": "0"},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    for left in (
        "restored/photo.compare.png",
        "evaluation/gallery.html",
        "restored-by-first/photo.png",
        "runs/search/sweep.html",
        "best/COMMIT",
        "restored-by-best/photo.png",
    ):
        assert (tmp_path / left).exists(), left
