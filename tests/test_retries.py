"""When a failed attempt is tried again: pure decisions, no cluster."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.checkpoint import CheckpointStore
from pipeline.config import load_train_config
from pipeline.errors import Stopped, UserError
from pipeline.train import driver
from pipeline.train.failures import find_user_error


class Fits:
    """Attempts that end as planned; a number is a checkpoint of that step, then a crash."""

    def __init__(self, store: CheckpointStore, ends: list[object]) -> None:
        self.store, self.ends, self.count = store, ends, 0

    def __call__(self, *_: object) -> None:
        end = self.ends[self.count]
        self.count += 1
        if isinstance(end, BaseException):
            raise end
        if isinstance(end, int):
            self.store.save(
                step=end, model={}, training={}, meta={"step": end}, files={}, metrics={}
            )
            self.store.wait()
            raise RuntimeError("a worker was lost")


def attempts(monkeypatch: pytest.MonkeyPatch, folder: Path, ends: list[object]) -> Fits:
    store = CheckpointStore(str(folder))
    fits = Fits(store, ends)
    monkeypatch.setattr(driver, "_fit", fits)
    driver._retry(load_train_config("tiny"), str(folder), store, None)
    return fits


def lost() -> RuntimeError:
    return RuntimeError("a worker was lost")


def test_three_failures_without_a_new_checkpoint_stop_the_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(RuntimeError, match="3 failures without a new checkpoint"):
        attempts(monkeypatch, tmp_path, [lost(), lost(), lost(), None])


def test_progress_resets_the_count(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ends = [lost(), lost(), 5, lost(), lost(), 9, None]
    assert attempts(monkeypatch, tmp_path, ends).count == len(ends)
    assert len((tmp_path / "attempts.jsonl").read_text().splitlines()) == len(ends)


@pytest.mark.parametrize("end", [UserError("the bucket is gone"), Stopped("SIGTERM")])
def test_the_users_errors_and_stops_are_never_retried(
    end: Exception, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(type(end)):
        attempts(monkeypatch, tmp_path, [end, None])


def test_user_errors_are_found_inside_what_ray_raises() -> None:
    try:
        try:
            raise UserError("no such bucket")
        except UserError as inner:
            raise RuntimeError("worker failed") from inner
    except RuntimeError as outer:
        assert find_user_error(outer) == "no such bucket"
    assert find_user_error(RuntimeError("other")) is None
