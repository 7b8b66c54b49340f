"""Sweeps: planned, refused, killed and continued, on a real cluster."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from conftest import S3Server
from small_run import SMALL_NETWORK

from pipeline import storage
from pipeline.cluster import join
from pipeline.config import load_train_config
from pipeline.errors import UserError
from pipeline.report.parallel import parallel, scale
from pipeline.runfolder import RunFolder
from pipeline.runs import list_runs
from pipeline.runs.search import Run, find_runs
from pipeline.tracking.mirror import run_id
from pipeline.tracking.segments import history, offline_runs, records
from pipeline.train import train
from pipeline.tune import tune
from pipeline.tune.begin import begin
from pipeline.tune.config import SweepConfig, load_sweep
from pipeline.tune.ledger import Ledger
from pipeline.tune.owner import Owner
from pipeline.tune.page import _cost, _curve, _row
from pipeline.tune.plan import Plan, Planner
from pipeline.tune.record import TrialRecord, read_record, record_name, write_record
from pipeline.tune.search import importance
from pipeline.tune.space import grid, in_space, overrides_of, random_points, value_at
from pipeline.tune.trial import trial_config, trial_count

SPACE = {"train.learning_rate": {"loguniform": [1e-4, 1e-2]}, "train.ema": {"choice": [0.5, 0.9]}}


def sweep_file(folder: Path, data: str, root: str, **changes: object) -> str:
    """A sweep of small runs."""
    values = {
        "config": "tiny",
        "overrides": [
            SMALL_NETWORK,
            f"run.root={root}",
            "run.name=sweep",
            f"data.train={data}/train",
            f"data.val={data}/val",
            "train.steps=8",
            "train.global_batch=2",
            "train.patch=[24]",
            "train.validate_every=4",
            "checkpoint.every=2",
            "tracking.wandb=disabled",
            "scaling.workers=1",
        ],
        "search": "random",
        "trials": 3,
        "space": SPACE,
        **changes,
    }
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return str(path)


# Points and the page


def test_importance_finds_the_key_that_matters() -> None:
    points = random_points(SPACE, 40, seed=0)
    results = [(p, -abs(math.log10(p["train.learning_rate"]) + 3)) for p in points]
    found = importance(SPACE, results, maximise=True)
    assert next(iter(found)) == "train.learning_rate" and sum(found.values()) == pytest.approx(1)
    assert found["train.learning_rate"] > 0.8
    assert importance(SPACE, results[:4], maximise=True) == {}


def test_settings_are_drawn_as_they_are_spelled() -> None:
    """Two dollars are no formula."""
    names = ["/a/$b_{$x", "/c"]
    rows = [{"data.train": name, "$a$": 1, "m": n / 2} for n, name in enumerate(names)]
    assert "/a/$b_{$x" in parallel(rows, ["data.train", "$a$"], "m")


def test_settings_are_drawn_against_results() -> None:
    heights, ticks = scale([1e-4, 1e-2, 1e-3])
    assert heights == pytest.approx([0, 1, 0.5]) and ticks == [(0.0, "0.0001"), (1.0, "0.01")]
    assert scale(["b", [1], "b"])[0] == [0.0, 1.0, 0.0]
    rows = [{"a": 1.0, "val/psnr": 2.0}, {"a": 2.0, "val/psnr": 3.0}, {"a": 3, "val/psnr": None}]
    drawing = parallel(rows, ["a"], "val/psnr")
    assert drawing.startswith("<svg") and "val/psnr" in drawing
    assert parallel(rows[1:], ["a"], "val/psnr") == ""


def test_a_sweep_over_networks_shows_what_each_costs(tmp_path: Path) -> None:
    space = {"model.size": {"choice": ["tiny", "base"]}}
    sweep = load_sweep(sweep_file(tmp_path, "data", ".", space=space, search="grid"), [])
    small, large = (_cost(sweep, point) for point in grid(space))
    assert small["parameters"] < large["parameters"] and small["GMAC"] < large["GMAC"]
    assert _cost(sweep, {"model.size": None}) == {"parameters": None, "GMAC": None}
    assert _cost(replace(sweep, space=SPACE), {}) == {}


def test_a_trial_of_settings_that_exclude_each_other_has_no_cost(tmp_path: Path) -> None:
    """Each value is allowed, the point is not: the trial has failed, and the sweep has a page."""
    space = {
        "train.estimator_share": {"uniform": [0, 0.5]},
        "train.prior_share": {"uniform": [0, 0.7]},
        "model.overrides.stages": {"choice": [1]},
    }
    sweep = load_sweep(sweep_file(tmp_path, "data", ".", space=space), [])
    point = {"train.estimator_share": 0.5, "train.prior_share": 0.7, "model.overrides.stages": 1}
    assert _cost(sweep, point) == {"parameters": None, "GMAC": None}
    assert _cost(sweep, {**point, "train.prior_share": 0.1})["parameters"] > 0
    row = _row("t", None, sweep, ({key: point[key] for key in reversed(point)}, "an error"))
    assert [*row][2:5] == [*space]  # under the page's headings


def test_equal_numbers_are_the_same_choice() -> None:
    space = {"train.clip_norm": {"choice": [0, 0.2, 1]}, "train.fused": {"choice": [True, "1"]}}
    assert in_space(space, {"train.clip_norm": 1.0, "train.fused": True})
    for other in (1, "True", 1.0):
        assert not in_space(space, {"train.clip_norm": 1.0, "train.fused": other})


def test_texts_of_any_script_are_overrides(tmp_path: Path) -> None:
    """What JSON escapes as two halves of a character, YAML refuses; some line ends it folds."""
    names = ["/d/😀", "/d/a\u2028 b", 'a "b"\\', "/e"]
    path = sweep_file(tmp_path, "data", ".", space={"data.train": {"choice": names}})
    sweep = load_sweep(path, [])
    points = map(overrides_of, grid(sweep.space))
    assert [sweep.training(point).data.train for point in points] == names


def test_points_are_keyed_and_within_their_ranges() -> None:
    ten = random_points({**SPACE, "train.seed": {"int": [3, 5]}}, 10, seed=1)
    assert ten[:4] == random_points({**SPACE, "train.seed": {"int": [3, 5]}}, 4, seed=1)
    assert ten != random_points({**SPACE, "train.seed": {"int": [3, 5]}}, 10, seed=2)
    assert all(1e-4 <= point["train.learning_rate"] <= 1e-2 for point in ten)
    assert {point["train.seed"] for point in ten} <= {3, 4, 5}


def test_grid_has_every_combination_once() -> None:
    points = grid({"a": {"choice": [1, 2]}, "b": {"choice": ["x", "y", "z"]}})
    assert len(points) == 6
    assert points[1] == {"a": 1, "b": "y"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"space": {"train.learning_rat": {"choice": [1]}}}, "did you mean train.learning_rate"),
        ({"space": {"train.ema": {"uniform": [0.5, 2.0]}}}, "train.ema"),
        ({"space": {"train.ema": {"uniform": [0.9, 0.5]}}}, "least must be below"),
        ({"space": {"train.ema": {"loguniform": [0, 0.5]}}}, "above 0"),
        ({"space": {"train.ema": {"normal": [0, 1]}}}, "not one of choice"),
        ({"space": {}}, "space is empty"),
        ({"search": "grid"}, "a grid needs choices only"),
        ({"search": "bayes"}, "expected one of grid, random, tpe"),
        ({"scheduler": "pb2"}, "expected one of none, asha, median, pbt"),
        ({"scheduler": "pbt", "exchange_every": 6}, "a multiple of train.validate_every, 4"),
        (
            {"scheduler": "pbt", "space": {"train.seed": {"choice": [1, 2]}}},
            "pbt cannot change train.seed within a run",
        ),
        ({"scheduler": "pbt", "exchange_every": 8}, "expected less than train.steps, 8"),
        ({"trials": 0}, "trials must be between 1 and"),
        ({"trials": "4"}, "trials is .* expected a whole number"),
        ({"seed": 1.5}, "seed is 1.5; expected a whole number"),
        ({"metric": "val/PSNR"}, "metric 'val/PSNR': expected one of val/psnr, val/ssim"),
        ({"overrides": 5}, "overrides is 5; expected a list"),
        ({"space": [1]}, "space is .* expected a table"),
        ({"space": {"train.seed": {"choice": 5}}}, "space.train.seed.choice is 5; expected a list"),
        ({"space": {"train.seed": {"int": [True, 5]}}}, "two whole numbers"),
        ({"space": {"train.ema": {"choice": [date(2001, 1, 1)]}}}, "expected a number"),
        ({"space": {"run.name": {"choice": ["a", "b"]}}}, "run.name names the sweep's folder"),
        ({"space": {"train.seed": {"choice": [1] * 1001}}}, "1001 choices; at most 1000"),
        (
            {
                "search": "grid",
                "space": {
                    "train.seed": {"choice": [1] * 400},
                    "train.steps": {"choice": [2] * 400},
                },
            },
            "the grid has 160000 points; at most 100000",
        ),
        ({"trails": 3}, "did you mean trials"),
    ],
)
def test_wrong_sweeps_are_refused(
    changes: dict[str, object], message: str, tiny_data: Path, tmp_path: Path
) -> None:
    path = sweep_file(tmp_path, str(tiny_data), str(tmp_path), **changes)
    with pytest.raises(UserError, match=message):
        load_sweep(path, [])


def test_what_cannot_run_is_refused(tiny_data: Path, tmp_path: Path) -> None:
    path = sweep_file(tmp_path, str(tiny_data), str(tmp_path), scheduler="asha")
    with pytest.raises(UserError, match=r"needs train\.validate_every"):
        load_sweep(path, ["train.validate_every=0"])
    for scheduler in ("asha", "median"):
        path = sweep_file(tmp_path, str(tiny_data), str(tmp_path), scheduler=scheduler)
        for steps in (3, 4):
            with pytest.raises(UserError, match=rf"every 4 is not less than train\.steps {steps}"):
                load_sweep(path, [f"train.steps={steps}"])
        space = {"train.validate_every": {"choice": [1, 2]}}
        path = sweep_file(tmp_path, str(tiny_data), str(tmp_path), scheduler=scheduler, space=space)
        assert load_sweep(path, ["train.steps=3"]).scheduler == scheduler
    with pytest.raises(UserError, match="val is empty"):
        load_sweep(path, ["data.val=''"])


def test_packaged_sweeps_load() -> None:
    for name in ("tiny", "asha", "population"):
        sweep = load_sweep(name, ["data.train=x", "data.val=y"])
        assert load_train_config(sweep.config).model.size == "tiny"


# What a restart knows


def begun(url: str, sweep: SweepConfig, retry_failed: bool = False) -> Ledger:
    """The ledger of a command that begins now."""
    return Ledger(url, sweep, Owner(url, trial_count(sweep)), retry_failed)


def ledger_of(folder: Path, **changes: object) -> Ledger:
    """The same, of a sweep whose trials are in `folder`/sweep."""
    sweep = load_sweep(sweep_file(folder, "data", str(folder), **changes), [])
    return begun(str(folder / "sweep"), sweep)


def fake_run(url: Path, *scores: float) -> None:
    """The files that a trial's run leaves after validations at steps 4, 8, ..."""
    rows = ({"step": 4 * n, "val/psnr": score} for n, score in enumerate(scores, start=1))
    storage.write_text(f"{url}/metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def a_trial(index: int) -> Any:
    from ray.tune.experiment import Trial

    return Trial("none", config={"index": index}, stub=True)


def decisions_of(ledger: Ledger) -> Any:
    from pipeline.tune.schedule import Decisions, rule_of

    decisions = Decisions(ledger, rule_of(ledger.sweep))
    decisions.set_search_properties("val/psnr", "max")
    return decisions


@pytest.mark.parametrize("kind", ["asha", "median"])
def test_early_stopping_knows_what_the_folders_know(kind: str, tmp_path: Path) -> None:
    """A restarted sweep stops what it would have stopped before; a new one does not."""
    stopped = {}
    for name, scores in (("old", (25.0, 24.0)), ("new", ())):
        for index, score in enumerate(scores):
            url = tmp_path / name / "sweep" / f"trial-{index:03d}"
            fake_run(url, score, score + 0.1)
            record = TrialRecord(point=random_points(SPACE, 3, 0)[index], judged=8)
            write_record(str(url), record, "0001-0123456789abcdef")
        (tmp_path / name).mkdir(exist_ok=True)
        ledger = ledger_of(tmp_path / name, scheduler=kind, reduction=2)
        decisions_of(ledger).on_trial_result(None, a_trial(2), {"step": 4, "val/psnr": 20.0})
        again = ledger_of(tmp_path / name, scheduler=kind, reduction=2)
        assert again.records[2].judged == 4  # recorded at once, for whatever is killed next
        stopped[name] = again.records[2].stopped_at
        assert (2 in again.unfinished()) == (name == "new")
    assert stopped == {"old": 4, "new": 0}


def test_a_decision_is_made_once(tmp_path: Path) -> None:
    """A result that was decided about before a kill is not decided about again."""
    ledger = ledger_of(tmp_path, scheduler="asha", reduction=2)
    decisions = decisions_of(ledger)
    for index, score in ((0, 20.0), (1, 25.0), (0, 20.0)):  # the last: reported again
        decisions.on_trial_result(None, a_trial(index), {"step": 4, "val/psnr": score})
    assert not ledger.stopped(0)
    decisions.on_trial_result(None, a_trial(0), {"step": 8, "val/psnr": 1.0})
    assert not ledger.stopped(0)  # the last step: it is finished, not stopped


def test_failures_survive_a_restart(tmp_path: Path) -> None:
    ledger = ledger_of(tmp_path, retries=2)
    ledger.fail(0, 1, False, "out of memory")
    ledger.fail(1, 3, True, "not finite")
    again = ledger_of(tmp_path, retries=2)
    assert again.unfinished() == [0, 2]
    assert again.failed()["trial-001"][1] == "not finite"
    trial = a_trial(0)
    decisions_of(again).on_trial_add(None, trial)
    assert trial.max_failures == 1
    assert begun(again.url, again.sweep, retry_failed=True).unfinished() == [0, 1, 2]
    assert ledger_of(tmp_path).failed() == {}


def test_a_trial_that_comes_further_has_its_retries_again(tmp_path: Path) -> None:
    from pipeline.tune.reporter import Reporter

    ledger = ledger_of(tmp_path, retries=1)
    ledger.fail(0, 1, False, "killed")  # by an earlier command
    reporter, trial = Reporter(ledger), a_trial(0)
    trial.storage = SimpleNamespace(trial_driver_staging_path="")
    decisions_of(ledger).on_trial_add(None, trial)
    assert trial.max_failures == 0
    reporter.on_trial_start(0, [], trial)
    reporter.on_trial_result(0, [], trial, {"step": 4, "val/psnr": 20.0})
    assert (trial.max_failures, ledger.records[0].failures) == (1, 0)
    trial.run_metadata.num_failures = 1
    reporter.on_trial_recover(0, [], trial)
    assert ledger.records[0].failures == 1
    reporter.on_trial_result(0, [], trial, {"step": 4, "val/psnr": 20.0})  # no further
    assert (trial.max_failures, ledger.records[0].failures) == (1, 1)
    reporter.on_trial_result(0, [], trial, {"step": 8, "val/psnr": 21.0})
    assert (trial.max_failures, ledger.records[0].failures) == (2, 0)
    trial.run_metadata.num_failures = 2
    reporter.on_trial_error(0, [], trial)
    assert begun(ledger.url, ledger.sweep).records[0].failures == 1


@pytest.mark.parametrize("place", ["configuration", "space"])
def test_no_credential_reaches_a_sweeps_folder(place: str, tiny_data: Path, tmp_path: Path) -> None:
    url = "s3://key:hidden-word@bucket/train"
    changes = {"space": {"data.train": {"choice": [url]}}, "search": "random"}
    path = sweep_file(
        tmp_path, str(tiny_data), str(tmp_path), **(changes if place == "space" else {})
    )
    with pytest.raises(UserError, match="with credentials") as refused:
        tune(path, [f"data.train={url}"] if place == "configuration" else [])
    assert "hidden-word" not in str(refused.value)
    assert not (tmp_path / "sweep" / "sweep.yaml").exists()


def test_a_sweep_without_its_data_does_not_begin(tiny_data: Path, tmp_path: Path) -> None:
    path = sweep_file(tmp_path, str(tiny_data), str(tmp_path))
    with pytest.raises(UserError, match=r"no manifest\.json there"):
        tune(path, ["data.val=/nowhere"])
    assert not (tmp_path / "sweep" / "sweep.yaml").exists()


def test_lines_without_a_step_are_no_points_of_a_curve(tmp_path: Path) -> None:
    rows = [{"val/psnr": 1.0}, {"step": 4, "val/psnr": 2.0}, {"step": 8, "val/psnr": "x"}]
    storage.write_text(f"{tmp_path}/metrics.jsonl", "".join(json.dumps(r) + "\n" for r in rows))
    assert _curve(Run(str(tmp_path)), "val/psnr") == [(4, 2.0)]


def test_the_newest_command_owns_a_sweep(tmp_path: Path) -> None:
    """An earlier one writes nothing; a write that was on its way replaces nothing."""
    older = ledger_of(tmp_path, search="tpe", scheduler="asha")
    url = older.trial_url(0)
    older.judge(0, 4, stop=False)
    newer = ledger_of(tmp_path, search="tpe", scheduler="asha")
    assert newer.start(0) == older.start(0)
    for work in (
        lambda: older.judge(0, 8, stop=True),
        lambda: older.fail(0, 1, True, "out of memory"),
        lambda: older.start(1),
        older.owner.look,
    ):
        with pytest.raises(UserError, match=r"^sweep .*: attempt 2 has taken it over since"):
            work()
    write_record(url, TrialRecord(older.records[0].point, 8, 8), older.owner.attempt)
    for attempt in ("", newer.owner.attempt):
        assert read_record(url, attempt) == newer.records[0]
    newest = Path(url, record_name(newer.owner.attempt))
    listed = storage.list_names(url)
    with pytest.MonkeyPatch.context() as late:
        late.setattr(storage, "list_names", lambda _: [listed[0]])  # without the newest
        assert read_record(url, before=newer.owner.attempt) == newer.records[0]
    assert not storage.is_dir(older.trial_url(1))
    assert ledger_of(tmp_path, search="tpe", scheduler="asha").unfinished() == [0, 1, 2]
    newest.write_text("{")
    assert read_record(url) == TrialRecord(older.records[0].point, 8, 8)  # the next older one


def test_tpe_keeps_numbers_and_points(tmp_path: Path) -> None:
    """A point is recorded when it is chosen; one whose record is lost is in the run's config."""
    ledger = ledger_of(tmp_path, search="tpe", trials=4)
    points = [ledger.start(index).point for index in range(3)]
    url = tmp_path / "sweep" / "trial-002"
    damaged = url / record_name(ledger.owner.attempt)
    rate, ema = points[2].values()
    values = {"train": {"learning_rate": rate, "ema": ema}}
    storage.write_text(f"{url}/config.yaml", yaml.safe_dump(values))
    damaged.write_text('{"point": {"run.root": "/else')
    new = ledger.start(3).point
    shutil.rmtree(tmp_path / "sweep" / "trial-003")
    again = ledger_of(tmp_path, search="tpe", trials=4)
    assert [again.start(index).point for index in range(3)] == points
    assert again.start(3).point == new  # a function of what is known
    assert len({again.records[index].point["train.learning_rate"] for index in range(4)}) == 4


def test_tpe_learns(tmp_path: Path) -> None:
    """Later points gather where values were good; the best rate is 3e-3 here."""
    ledger = ledger_of(tmp_path, search="tpe", trials=40)
    distances = []
    for index in range(40):
        rate = ledger.start(index).point["train.learning_rate"]
        distances.append(abs(math.log(rate / 3e-3)))
        ledger.add_result(index, 8, -distances[-1])
    assert sum(distances[20:]) / 20 < 0.8 * sum(distances[:10]) / 10


@pytest.mark.parametrize(
    "text", ["", "[]", "a: *b", "x: &x [1, 1]\ny: *x", "[" * 100_000, "trials: []", "training: 5"]
)
def test_a_foreign_sweep_file_is_refused(text: str, tmp_path: Path) -> None:
    sweep = load_sweep(sweep_file(tmp_path, "data", str(tmp_path)), [])
    place = tmp_path / "sweep" / "sweep.yaml"
    place.parent.mkdir()
    place.write_text(text)
    with pytest.raises(UserError, match=str(place)) as caught:
        begin(str(place.parent), sweep, resumed=True)
    assert "\n" not in str(caught.value)


def test_trials_can_be_added(tmp_path: Path) -> None:
    few, more = (load_sweep(sweep_file(tmp_path, "d", "r", trials=n), []) for n in (3, 5))
    url = str(tmp_path / "sweep")
    begin(url, few, resumed=False)
    begin(url, few, resumed=False)  # another command, which saw no sweep.yaml a moment ago
    begin(url, few, resumed=True)
    begin(url, more, resumed=True)
    with pytest.raises(UserError, match="another trials"):
        begin(url, few, resumed=True)


def test_a_grids_keys_keep_their_order(tmp_path: Path) -> None:
    space = {"train.seed": {"choice": [1, 2]}, "train.ema": {"choice": [0.5, 0.9]}}
    turned = dict(reversed(space.items()))
    for search in ("grid", "random"):
        first, second = (
            load_sweep(sweep_file(tmp_path, "d", "r", search=search, space=one), [])
            for one in (space, turned)
        )
        url = str(tmp_path / search)
        begin(url, first, resumed=False)
        if search == "grid":
            with pytest.raises(UserError, match="another order of the space's keys"):
                begin(url, second, resumed=True)
        else:
            begin(url, second, resumed=True)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"point": 5}',
        '{"point": {"run.root": "/else"}}',
        '{"point": {"train.learning_rate": 1e9, "train.ema": 0.5}}',
        '{"point": {"train.learning_rate": NaN, "train.ema": 0.5}}',
        '{"point": {}, "judged": "4"}',
        '{"point": {}, "judged": -1}',
        '{"point": {}, "code": "x"}',
        '{"point": ' + "[" * 20_000,
        '{"point": {}, "error": "' + "x" * 100_000 + '"}',
    ],
)
def test_foreign_records_change_nothing(text: str, tmp_path: Path) -> None:
    (tmp_path / "sweep" / "trial-000").mkdir(parents=True)
    (tmp_path / "sweep" / "trial-000" / ".trial.json").write_text(text)
    for search in ("random", "tpe"):
        point = ledger_of(tmp_path, search=search).start(0).point
        assert point.keys() == SPACE.keys()
        assert 1e-4 <= point["train.learning_rate"] <= 1e-2


# The plan


def test_plan_says_what_runs_at_once_and_where(
    ray_cluster: str, tiny_data: Path, tmp_path: Path
) -> None:
    """The cluster has three nodes of two processors; one of them offers eight `trial`."""
    join()

    def plan(*overrides: str, **changes: object) -> Plan:
        path = sweep_file(tmp_path, str(tiny_data), str(tmp_path), **changes)
        sweep = load_sweep(path, ["train.global_batch=8", *overrides])
        return Planner(sweep, trial_count(sweep)).plan()

    text = "20 trials, 6 at once; each has 1 worker of 1 CPU; drivers go to nodes that offer"
    assert str(plan(trials=20)).startswith(text)
    assert plan(trials=20, concurrent=4).at_once == 4
    assert plan("scaling.workers=2", trials=20).at_once == 3
    assert plan("scaling.workers=[2, 3]", trials=20).workers == (2, 3)
    assert plan("scaling.workers=2", "scaling.cpus_per_worker=2", trials=20).at_once == 1
    space = {"scaling.workers": {"choice": [1, 4]}, **SPACE}
    assert plan(space=space).at_once == 1  # the heaviest trial counts
    with pytest.raises(UserError, match="the nodes have room for 6, and no autoscaler"):
        plan("scaling.workers=7")
    with pytest.raises(UserError, match="nodes have room for 0"):
        plan("scaling.cpus_per_worker=3")
    with pytest.raises(UserError, match="needs 1 CPU and 1 GPU for each"):
        plan("scaling.gpu=true")
    with pytest.raises(UserError, match=r"workers=4 needs 2 CPU for each worker: .* room for 3"):
        plan("scaling.cpus_per_worker=2", space={"scaling.workers": {"int": [1, 4]}})


# Sweeps


def command_for(path: str, *overrides: str) -> list[str]:
    return [sys.executable, "-m", "pipeline", "tune", "--config", path, "--json", *overrides]


def kill_when(command: list[str], ready: Callable[[], bool]) -> str:
    """Start a sweep, kill its driver without a word as soon as `ready`; return its log."""
    process = begin_command(command, ready)
    process.kill()
    return process.communicate()[1]


def begin_command(command: list[str], ready: Callable[[], bool]) -> subprocess.Popen[str]:
    """Start a sweep; returns as soon as `ready`."""
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    for _ in range(1500):
        if ready():
            return process
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.1)
    raise AssertionError("never ready")


def finish(command: list[str]) -> dict[str, Any]:
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def rows_of(url: str, trial: str) -> list[dict[str, float]]:
    """A trial's validations."""
    lines = storage.read_text(f"{url}/{trial}/metrics.jsonl").splitlines()
    return [
        {k: v for k, v in row.items() if k == "step" or k.startswith("val/")}
        for row in map(json.loads, lines)
        if "val/psnr" in row
    ]


@pytest.mark.full
def test_sweep_on_s3_is_killed_and_goes_on(
    ray_cluster: str, tiny_data: Path, s3_server: S3Server, tmp_path: Path
) -> None:
    """No trial is lost or run twice; all are as planned, and as if nothing had happened."""
    root = storage.join(s3_server.url, "sweeps")
    path = sweep_file(tmp_path, str(tiny_data), root, trials=2)
    command, url = command_for(path), storage.join(root, "sweep")
    log = kill_when(command, lambda: any("COMMIT" in e.relative for e in storage.find(url)))
    assert "2 trials, 2 at once; each has 1 worker of 1 CPU" in log
    assert "trial-000 starts" in log
    found = finish(command)
    assert (found["trials"], found["failed"]) == (2, 0)
    rows = list_runs(url)["runs"]
    assert sorted(row["name"] for row in rows) == ["trial-000", "trial-001"]
    assert all(row["step"] == 8 for row in rows)
    for index, point in enumerate(random_points(SPACE, 2, 0)):
        trial = f"trial-{index:03d}"
        config = yaml.safe_load(storage.read_text(f"{url}/{trial}/config.yaml"))
        assert config["train"]["learning_rate"] == pytest.approx(point["train.learning_rate"])
        assert [row["step"] for row in rows_of(url, trial)] == [4, 8]
    struck = max(rows, key=lambda row: row["attempts"])
    assert struck["attempts"] == 2
    index = int(struck["name"][-3:])
    calm = trial_config(load_sweep(path, []), index, random_points(SPACE, 2, 0)[index])
    train(replace(calm, run=replace(calm.run, root=str(tmp_path))))
    assert rows_of(str(tmp_path), struck["name"]) == rows_of(url, struck["name"])
    assert found["best"].startswith(rows[0]["url"])
    page = storage.read_text(storage.join(url, "sweep.html"))
    assert all(f"trial-00{index}" in page for index in range(2))
    assert finish(command)["best"] == found["best"]


@pytest.mark.full
def test_killed_tpe_sweep_keeps_its_trials_and_what_it_learned(
    ray_cluster: str, tiny_data: Path, tmp_path: Path
) -> None:
    path = sweep_file(tmp_path, str(tiny_data), str(tmp_path), search="tpe", concurrent=2)
    command = command_for(path, "tracking.wandb=offline")
    url = tmp_path / "sweep"

    def points() -> dict[str, Any]:
        found = {run.name: run.config for run in find_runs(str(url))} if url.exists() else {}
        return {
            name: [value_at(config, key) for key in SPACE]
            for name, config in found.items()
            if name.startswith("trial")
        }

    kill_when(command, lambda: (url / "trial-001" / "config.yaml").exists())
    before = points()
    found = finish(command)
    assert (found["trials"], found["failed"]) == (3, 0)
    after = points()
    assert sorted(after) == [f"trial-00{index}" for index in range(3)]
    assert {name: after[name] for name in before} == before
    # A search that has forgotten starts from its seed, with the same points again.
    assert len({tuple(point) for point in after.values()}) == 3
    rows = list_runs(str(url))["runs"]
    assert all(row["step"] == 8 for row in rows)
    for row in rows:
        assert_one_wandb_run(row["url"])


def assert_one_wandb_run(url: str) -> None:
    """W&B's files of all attempts: the sweep's group, one run id, every step once."""
    name, segments = run_id(url), offline_runs(url, run_id(url))
    assert segments == [n for n in storage.list_names(f"{url}/wandb") if n.startswith("offline-")]
    files = [storage.read_bytes(f"{url}/wandb/{n}/run-{name}.wandb") for n in segments]
    starts = [one.run for file in files for one in records(file) if one.HasField("run")]
    assert {(start.run_id, start.run_group) for start in starts} == {(name, "sweep")}
    steps = [row["global_step"] for file in files for row in history(file)]
    assert sorted(steps) == sorted(set(steps))
    assert max(steps) == 8


@pytest.mark.full
def test_killed_asha_sweep_stops_a_trial_that_learns_nothing(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One at a time, the idle trial last: only what was known before the kill can stop it.

    On clusters of the commands' own, where each trial needs all processors: a trial that ended and
    kept its own would hold the sweep up.
    """
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    path = sweep_file(
        tmp_path,
        str(tiny_data),
        str(tmp_path),
        search="grid",
        scheduler="asha",
        reduction=2,
        concurrent=1,
        space={"train.learning_rate": {"choice": [4e-3, 0.0]}},
    )
    # So little regularisation that the network starts at 7 dB: who learns nothing stays there.
    overrides = ["model.overrides.lambda_2=1.0e-06", "train.prior_share=0", "train.ema=0.5"]
    overrides += ["train.estimator_share=0", "train.steps=80", "train.validate_every=10"]
    overrides += [f"scaling.cpus_per_worker={os.cpu_count()}"]
    command = command_for(path, *overrides, "train.global_batch=4", "checkpoint.every=20")
    url = tmp_path / "sweep"
    kill_when(command, lambda: (url / "trial-001" / "config.yaml").exists())
    steps = {row["name"]: row["step"] for row in list_runs(str(url))["runs"]}
    found = finish(command)
    rows = {row["name"]: row for row in list_runs(str(url))["runs"]}
    assert rows["trial-000"]["step"] == 80
    record = read_record(str(url / "trial-001"))
    assert record is not None and rows["trial-001"]["step"] == record.stopped_at == 10
    assert "trial-001" not in found["best"]
    # Done before the kill: not touched again.
    assert (steps["trial-000"], rows["trial-000"]["attempts"]) == (80, 1)
    assert "stopped early" in (url / "sweep.html").read_text()
    assert finish(command) == found
    assert {row["name"]: row for row in list_runs(str(url))["runs"]} == rows


SECRETS = {
    "AWS_SECRET_ACCESS_KEY": "aws-secret-9c1f",
    "AWS_SESSION_TOKEN": "aws-session-77ab",
    "WANDB_API_KEY": "wandb-secret-0d2e",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": "5ec3e7" * 8,
}


def secrets_in(text: bytes) -> list[str]:
    return [
        name for name, value in SECRETS.items() if value.encode() in text and "MODE" not in name
    ]


def command_lines() -> Iterator[bytes]:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            yield path.read_bytes()


@pytest.mark.full
def test_sigterm_ends_a_sweep_in_order_and_no_secret_is_shown(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a cluster of the command's own; what Ray writes and shows is searched while it runs."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    path = sweep_file(tmp_path, str(tiny_data), str(tmp_path), trials=1)
    url, folder = tmp_path / "sweep", Path(tempfile.mkdtemp(prefix="era-ray-"))
    hostile = url / ".tune"
    hostile.mkdir(parents=True)
    (hostile / "tuner.pkl").write_bytes(b"cos\nsystem\n(S'touch " + bytes(hostile) + b"/x'\ntR.")
    process = subprocess.Popen(
        command_for(path, "train.steps=100000", "train.validate_every=0", "checkpoint.every=300"),
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **SECRETS, "RAY_TMPDIR": str(folder)},
    )
    found: set[str] = set()
    try:
        while not any((url / "trial-000").glob("checkpoints/*/COMMIT")):
            assert process.poll() is None, process.communicate()[1]
            found |= {name for line in command_lines() for name in secrets_in(line)}
            time.sleep(0.2)
        process.terminate()
        log = process.communicate(timeout=120)[1]
    finally:
        process.kill()
    assert process.returncode == 143, log
    assert "stopped by SIGTERM" in log
    saved = RunFolder(str(url / "trial-000")).latest()
    assert saved is not None and saved.step % 300, "the trial has not saved where it was"
    assert "*** " not in log
    files = [p for p in [*folder.rglob("*"), *url.rglob("*")] if p.is_file() and not p.is_symlink()]
    assert len(files) > 20
    assert found | {name for p in files for name in secrets_in(p.read_bytes())} == set()
    assert not secrets_in(log.encode())
    assert [p.name for p in hostile.iterdir()] == ["tuner.pkl"]
    shutil.rmtree(folder)


@pytest.mark.full
def test_a_full_disk_within_tune_is_one_line(
    ray_cluster: str, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tune makes a traceback of what a handler raises."""

    def judge(*_: object) -> None:
        raise UserError("trial-000: the disk is full")

    monkeypatch.setattr(Ledger, "judge", judge)
    path = sweep_file(tmp_path, str(tiny_data), str(tmp_path), scheduler="asha", reduction=2)
    with pytest.raises(UserError, match=r"^trial-000: the disk is full$"):
        tune(path, [])


@pytest.mark.full
def test_failing_trial_is_retried_and_set_aside(
    ray_cluster: str, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trial whose learning rate blows up is set aside with its error; the other finishes."""
    monkeypatch.chdir(tmp_path)  # relative paths mean the same to trials and their workers
    path = sweep_file(
        tmp_path,
        os.path.relpath(tiny_data),
        ".",
        search="grid",
        scheduler="median",
        retries=1,
        space={"train.learning_rate": {"choice": [1e30, 1e-3]}},
    )
    overrides = ["train.nonfinite_budget=0", "train.clip_norm=0", "train.warmup=0"]
    found = tune(path, [*overrides, "train.steps=12"])
    assert (found["trials"], found["failed"]) == (2, 1)
    record = read_record(str(tmp_path / "sweep" / "trial-000"))
    assert record is not None and (record.failures, record.failed) == (2, True)
    assert "not finite" in record.error
    rows = {row["name"]: row for row in list_runs(found["sweep"])["runs"]}
    assert rows["trial-001"]["step"] == 12
    assert rows["trial-000"]["attempts"] == 2
    page = (tmp_path / "sweep" / "sweep.html").read_text()
    assert "failed" in page
    assert "finite" in page
    with pytest.raises(UserError, match="began with another"):
        tune(sweep_file(tmp_path, os.path.relpath(tiny_data), ".", trials=9), overrides)
