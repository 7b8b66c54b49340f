"""Population-based training: what is decided, and that a kill changes nothing of it."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from test_tune import (
    SPACE,
    begin_command,
    begun,
    command_for,
    finish,
    kill_when,
    ledger_of,
    rows_of,
    sweep_file,
)

from pipeline import storage
from pipeline.checkpoint import CheckpointStore
from pipeline.errors import UserError
from pipeline.runfolder import RunFolder, load_frozen
from pipeline.train.state import TrainState
from pipeline.tune.config import load_sweep
from pipeline.tune.ledger import Ledger
from pipeline.tune.population import Population, decide, read_round
from pipeline.tune.record import TrialRecord, read_record, record_name
from pipeline.tune.space import in_space, random_points
from pipeline.tune.trial import trial_config

CPU = torch.device("cpu")


def test_an_exchange_depends_on_results_and_seed_alone() -> None:
    points = dict(enumerate(random_points(SPACE, 8, seed=0)))
    scores: dict[int, float | None] = {i: 20.0 + i for i in range(7)} | {7: None}
    found = decide(SPACE, 0, 4, scores, points, maximise=True)
    assert [e.trial for e in found] == [0, 7] and {e.source for e in found} <= {5, 6}
    backwards = dict(reversed(scores.items()))
    assert decide(SPACE, 0, 4, backwards, points, maximise=True) == found
    assert decide(SPACE, 1, 4, scores, points, maximise=True) != found
    assert decide(SPACE, 0, 8, scores, points, maximise=True) != found
    assert {e.trial for e in decide(SPACE, 0, 4, scores, points, maximise=False)} == {6, 7}
    assert decide(SPACE, 0, 4, dict.fromkeys(range(4), 20.0), points, maximise=True) == []


def test_explored_values_stay_in_their_domains() -> None:
    space = {**SPACE, "train.steps": {"int": [1, 9]}, "loss.omega": {"uniform": [0.2, 0.6]}}
    points = dict(enumerate(random_points(space, 80, seed=0)))
    scores: dict[int, float | None] = {i: float(i) for i in points}
    changed = 0
    for step in range(5):
        for exchange in decide(space, 0, step, scores, points, maximise=True):
            assert in_space(space, exchange.point)
            before = points[exchange.source]
            changed += sum(before[key] != value for key, value in exchange.point.items())
    assert changed > 200  # of 400 values


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"step": 4, "scores": {}, "exchanges": [5]}'])
def test_a_foreign_decision_is_refused(text: str, tmp_path: Path) -> None:
    ledger = ledger_of(tmp_path, scheduler="pbt")
    storage.write_text(f"{ledger.url}/exchanges/step-00000004.json", text)
    with pytest.raises(UserError, match=r"step-00000004.json"):
        read_round(ledger.url, ledger.sweep, 4)
    row = {"trial": 0, "source": 99, "seed": "", "before": {}, "point": ledger.start(0).point}
    found = {"step": 4, "scores": {}, "exchanges": [row]}
    storage.write_text(f"{ledger.url}/exchanges/step-00000004.json", json.dumps(found))
    with pytest.raises(UserError, match="not a decision of this sweep"):
        read_round(ledger.url, ledger.sweep, 4)


def a_population(data: Path, folder: Path) -> Ledger:
    """Two trials that have arrived at step 4, where the first is better."""
    path = sweep_file(folder, str(data), str(folder), scheduler="pbt", trials=2)
    sweep = load_sweep(path, [])
    ledger = begun(str(folder / "sweep"), sweep)
    for index, score in enumerate((25.0, 24.0)):
        config = trial_config(sweep, index, ledger.start(index).point)
        run = RunFolder(ledger.trial_url(index))
        run.freeze(config)
        state = TrainState(config, torch.device("cpu"))
        state.step = 4
        state.ema.scalars.raw.data.fill_(score)
        line = json.dumps({"step": 4, "val/psnr": score}) + "\n"
        store = CheckpointStore(run.url, attempt=run.begin_attempt(config, None))
        store.save(
            step=4,
            model=state.weights(),
            training=state.training(),
            meta={"step": 4, "model": state.model.config.to_dict()},
            files={"metrics.jsonl": line.encode(), "samples.jsonl": b""},
            metrics={"val/psnr": score},
        )
        store.wait()
    return begun(ledger.url, sweep)


def test_a_trial_goes_on_from_the_better_ones_weights(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed at any write of the exchange and started again, it is the same exchange."""
    ledger = a_population(tiny_data, tmp_path)
    left = 0

    def dying(write: Callable[[str, bytes], bool | None], url: str, data: bytes) -> bool | None:
        nonlocal left
        left -= 1
        if left < 0:
            raise InterruptedError
        return write(url, data)

    for name in ("write_bytes", "create"):
        monkeypatch.setattr(storage, name, partial(dying, getattr(storage, name)))
    kills = 0
    while True:
        left = 99
        ledger, left = begun(ledger.url, ledger.sweep), kills
        population = Population(ledger)
        try:
            assert population.advance()
            break
        except InterruptedError:
            kills += 1
            assert kills < 50
    assert kills > 3
    (held,) = population.rounds
    assert read_round(ledger.url, ledger.sweep, 4) == held and ledger.unfinished() == [0, 1]
    (exchange,) = held.exchanges
    assert (exchange.trial, exchange.source, ledger.last_step) == (1, 0, 8)
    url = ledger.trial_url(1)
    assert url.endswith("/trial-001-step-00000004")
    better, taken = (CheckpointStore(u).load_latest() for u in (ledger.trial_url(0), url))
    assert better is not None and taken is not None
    assert all(torch.equal(taken.weights[name], value) for name, value in better.weights.items())
    assert (taken.run_files, taken.checkpoint.step) == (better.run_files, 4)
    config = load_frozen(f"{url}/config.yaml")
    assert config.train.learning_rate == exchange.point["train.learning_rate"]
    origin = json.loads(storage.read_text(f"{url}/exchange.json"))
    assert origin["before"] == exchange.before and origin["checkpoint"] == better.checkpoint.url
    damaged = Path(url) / record_name(ledger.owner.attempt)
    damaged.write_text("{")  # what was decided holds
    again = begun(ledger.url, ledger.sweep)
    Population(again).advance()
    assert again.start(1).point == exchange.point
    record = read_record(url)
    assert record is not None and record.point == exchange.point


def test_a_moved_trial_never_begins_with_random_weights(tiny_data: Path, tmp_path: Path) -> None:
    ledger = a_population(tiny_data, tmp_path)
    Population(ledger).advance()
    url = ledger.trial_url(1)
    (weights,) = Path(url).glob("checkpoints/*/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"trial-001-step-00000004: no sound checkpoint, and the"):
        CheckpointStore(url).load_latest()
    (source,) = Path(ledger.trial_url(0)).glob("checkpoints/*/model.safetensors")
    source.write_bytes(source.read_bytes()[:-1])
    assert CheckpointStore(ledger.trial_url(0)).load_latest() is None  # it can begin from the start


def test_what_was_decided_without_a_trial_is_not_decided_again(
    tiny_data: Path, tmp_path: Path
) -> None:
    """One that failed before an exchange and is tried again takes part in the next one only."""
    ledger = a_population(tiny_data, tmp_path)
    shutil.rmtree(f"{ledger.trial_url(1)}/checkpoints")
    ledger = begun(ledger.url, ledger.sweep)
    ledger.fail(1, 2, True, "no luck")
    population = Population(begun(ledger.url, ledger.sweep))
    assert population.ledger.until == 4
    assert population.advance()  # the other goes on
    assert population.ledger.until == 0
    held = read_round(ledger.url, ledger.sweep, 4)
    assert held is not None and (list(held.scores), held.exchanges) == (["trial-000"], [])
    again = Population(begun(ledger.url, ledger.sweep, retry_failed=True))
    assert again.advance() and again.ledger.unfinished() == [1]
    assert read_round(ledger.url, ledger.sweep, 4) == held


def test_two_commands_make_one_exchange(tiny_data: Path, tmp_path: Path) -> None:
    """One that hangs while it decides finds the newer command's decision, or writes nothing."""
    older = Population(a_population(tiny_data, tmp_path))
    other = replace(older._decide(4, [0, 1]), scores={"trial-000": 1.0})
    newer = Population(begun(older.ledger.url, older.ledger.sweep))
    assert newer.advance()
    held = newer.rounds[0]
    with pytest.raises(UserError, match="has taken it over"):
        older._record(other)
    older.ledger.owner = newer.ledger.owner  # as if it had not been overtaken yet when it asked
    assert older._record(other) == held == read_round(older.ledger.url, older.ledger.sweep, 4)


def test_a_curve_that_cannot_be_read_makes_no_trial_the_worst(
    tiny_data: Path, tmp_path: Path
) -> None:
    ledger = a_population(tiny_data, tmp_path)
    Path(f"{ledger.trial_url(0)}/metrics.jsonl").write_bytes(b"\xff{")
    population = Population(begun(ledger.url, ledger.sweep))
    population.advance()
    assert population.rounds[0].scores == {"trial-000": 25.0, "trial-001": 24.0}


def test_trials_end_where_their_configuration_says(tmp_path: Path) -> None:
    """Steps may be searched for, where there are no exchanges."""
    ledger = ledger_of(tmp_path)
    Population(ledger)
    point = {**ledger.start(0).point, "train.steps": 20}
    config = trial_config(ledger.sweep, 0, point, until=ledger.until)
    assert (config.train.steps, config.debug.stop_at) == (20, 0)
    for steps in (2, 20):
        ledger.records[0] = TrialRecord(point={**point, "train.steps": steps})
        ledger.steps[0] = 10
        assert ledger.finished(0) == (steps == 2)


def test_values_are_the_configurations_not_the_checkpoints(tiny_data: Path, tmp_path: Path) -> None:
    sweep = load_sweep(sweep_file(tmp_path, str(tiny_data), str(tmp_path)), [])
    other, own = (
        TrainState(sweep.training([f"train.weight_decay={d}", f"train.scalar_rate={r}"]), CPU)
        for d, r in ((0.0, 20.0), (0.1, 5.0))
    )
    own.restore(other.weights(), other.training())
    assert [(g["weight_decay"], g["rate"]) for g in own.optimizer.param_groups] == [
        (0.1, 1.0),
        (0.1, 5.0),
    ]


def two_at_a_time(command: list[str], folder: Path) -> dict[str, Any]:
    """Run a sweep's command while it runs already: the earlier one stops; returns the result."""
    before = len(list(folder.glob("trial-*/attempts/*")))
    older = begin_command(
        command, lambda: len(list(folder.glob("trial-*/attempts/*"))) > before
    )  # a trial has begun
    older.send_signal(signal.SIGSTOP)
    newer = begin_command(command, lambda: len(list(folder.glob("attempts/*"))) == 3)
    older.send_signal(signal.SIGCONT)
    log = older.communicate(timeout=120)[1]
    assert older.returncode == 2 and f"sweep {folder}: attempt 3 has taken it over" in log, log
    out, log = newer.communicate(timeout=300)
    assert newer.returncode == 0, log
    return dict(json.loads(out))


@pytest.mark.full
def test_a_population_is_killed_and_exchanges_the_same(
    ray_cluster: str, tiny_data: Path, tmp_path: Path
) -> None:
    """Same exchanges, best and curves as of an undisturbed one; also of two commands at a time."""
    found: dict[str, Any] = {}
    for name in ("calm", "struck"):
        (tmp_path / name).mkdir()
        options: dict[str, Any] = {"scheduler": "pbt", "trials": 2}
        path = sweep_file(tmp_path / name, str(tiny_data), str(tmp_path / name), **options)
        command, url = command_for(path), f"{tmp_path / name}/sweep"
        if name == "struck":
            kill_when(command, Path(f"{url}/exchanges/step-00000004.json").exists)
            summary = two_at_a_time(command, Path(url))
        else:
            summary = finish(command)
        runs = sorted(p.parent.name for p in Path(url).glob("*/config.yaml"))
        found[name] = {
            "best": summary["best"].removeprefix(url),
            "rounds": [p.read_text() for p in sorted(Path(url).glob("exchanges/*"))],
            "curves": {run: rows_of(url, run) for run in runs},
        }
        assert "Exchanges" in Path(f"{url}/sweep.html").read_text()
    assert found["calm"] == found["struck"]
    rounds = [json.loads(text) for text in found["calm"]["rounds"]]
    assert [held["step"] for held in rounds] == [4]
    assert len(rounds[0]["exchanges"]) == 1 and len(found["calm"]["curves"]) == 3
    for held in rounds:
        for exchange in held["exchanges"]:
            run = f"trial-{exchange['trial']:03d}-step-{held['step']:08d}"
            config = load_frozen(f"{tmp_path}/struck/sweep/{run}/config.yaml")
            assert config.train.ema == exchange["point"]["train.ema"]
