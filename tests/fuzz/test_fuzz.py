"""Whatever a file holds, its parser takes it or refuses it in one line; nothing else comes out.

A short run here, a longer one with `-m full`, and one of any length by hand:

    ERA_FUZZ_EXAMPLES=100000 pytest -m full tests/fuzz -k manifest
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from found import FOUND
from hypothesis import HealthCheck, Phase, given, settings
from targets import Target, targets

from pipeline.errors import UserError

NAMES = [
    *("manifest.json", "shard", "config.yaml", "attempts.jsonl", "metrics.jsonl", "COMMIT"),
    *(
        "meta.json",
        "config",
        "override",
        "sweep",
        ".trial.json",
        "exchange",
        "url",
        "checks",
        "pairs.csv",
    ),
    *("labels.npy", "wandb", "photograph.png8", "photograph.palette", "photograph.png16"),
    *("photograph.jpeg", "photograph.cmyk", "photograph.webp", "photograph.webp-alpha"),
    *("photograph.tiff", "photograph.bigtiff", "rayjob", "pods", "events", "result"),
]
FEW, MANY = 15, int(os.environ.get("ERA_FUZZ_EXAMPLES", "100"))


@pytest.fixture(scope="module")
def known(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Target]:
    """The targets, with a run and shards of their own to damage."""
    from test_runs import make_run

    root = tmp_path_factory.mktemp("fuzz")
    run = Path(make_run(str(root), "seed", [20.0], 1e-3))
    return targets(run, tiny_data, root)


def _one(target: Target, content: bytes) -> None:
    try:
        target.read(content)
    except MemoryError:  # a header that promises more than this machine has
        pass
    except UserError as error:
        assert len(str(error)) < 10_000  # a URL is repeated, of at most 4096 characters


def _many(target: Target, count: int, derandomize: bool) -> None:
    @settings(
        max_examples=count,
        derandomize=derandomize,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )
    @given(content=target.inputs)
    def run(content: bytes) -> None:
        _one(target, content)

    run()


@pytest.mark.parametrize("name", NAMES)
def test_only_refusals_come_out(name: str, known: dict[str, Target]) -> None:
    for content in FOUND.get(name, []):
        _one(known[name], content)
    _many(known[name], FEW, derandomize=True)


@pytest.mark.full
@pytest.mark.parametrize("name", NAMES)
def test_only_refusals_come_out_of_many(name: str, known: dict[str, Target]) -> None:
    _many(known[name], MANY, derandomize=False)


def test_every_target_is_fuzzed(known: dict[str, Target]) -> None:
    assert sorted(known) == sorted(NAMES)
