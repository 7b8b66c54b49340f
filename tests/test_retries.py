"""When a failed attempt is tried again, stopped or fenced off: decisions, without a cluster."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import ray

from pipeline import storage
from pipeline.checkpoint import CheckpointStore
from pipeline.config import load_train_config
from pipeline.errors import Stopped, StorageDown, UserError
from pipeline.runfolder import KeptLog, RunFolder
from pipeline.train import attempt, driver
from pipeline.train.driver import _given_up
from pipeline.train.driver_channel import DriverChannel, Report
from pipeline.train.failures import fault_of_environment, find_user_error, root_cause
from pipeline.train.incidents import Incidents


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
    monkeypatch.setattr(driver, "run_attempt", fits)
    driver._retry(load_train_config("tiny"), str(folder), store, KeptLog(), None)
    return fits


def test_no_attempt_begins_where_none_may(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A trial of a command that was started again meanwhile leaves its run alone."""
    answers = iter([None, UserError("taken over")])

    def may_begin() -> None:
        if error := next(answers):
            raise error

    store = CheckpointStore(str(tmp_path))
    monkeypatch.setattr(driver, "run_attempt", Fits(store, [lost(), None]))
    with pytest.raises(UserError, match="taken over"):
        driver._retry(
            load_train_config("tiny"), str(tmp_path), store, KeptLog(), None, may_begin=may_begin
        )
    assert len((tmp_path / "attempts.jsonl").read_text().splitlines()) == 1


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


def test_a_bucket_that_is_down_is_tried_again_but_not_for_ever(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    down = StorageDown("s3://b/run: no good answer")
    assert attempts(monkeypatch, tmp_path / "a", [down, down, None]).count == 3
    with pytest.raises(StorageDown, match="no good answer"):
        attempts(monkeypatch, tmp_path / "b", [down, down, down, None])


def test_the_newest_attempt_owns_the_run(tmp_path: Path) -> None:
    url = str(tmp_path)
    config = load_train_config("tiny")
    older = RunFolder(url).begin_attempt(config, None)
    store = CheckpointStore(url, lambda: RunFolder(url).require_owner(older))
    store.save(step=1, meta={"step": 1}, model={}, training={}, files={}, metrics={})
    store.wait()
    newer = RunFolder(url).begin_attempt(config, 1)
    with pytest.raises(UserError, match="attempt 2 has taken it over"):
        store.save(step=2, meta={"step": 2}, model={}, training={}, files={}, metrics={})
        store.wait()
    RunFolder(url).require_owner(newer)
    assert CheckpointStore(url).folder.steps() == [1]


def test_a_failed_attempt_does_not_take_the_run_back(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def overtaken(*_: object) -> None:
        RunFolder(str(tmp_path)).begin_attempt(load_train_config("tiny"), None)
        raise lost()

    monkeypatch.setattr(driver, "run_attempt", overtaken)
    with pytest.raises(UserError, match="attempt 2 has taken it over"):
        store = CheckpointStore(str(tmp_path))
        driver._retry(load_train_config("tiny"), str(tmp_path), store, KeptLog(), None)


def test_each_group_of_workers_has_an_attempt_until_another_command_begins(tmp_path: Path) -> None:
    """Also where what was known of the groups is lost, as when an actor restarts."""
    folder, config = RunFolder(str(tmp_path)), load_train_config("tiny")
    command = folder.begin_attempt(config, None)
    assert folder.begin_group(config, None, command, first=True) == command
    groups = [command]
    for first in (False, False, True):
        groups.append(folder.begin_group(config, 1, command, first))
        folder.require_owner(groups[-1])
        for earlier in groups[:-1]:
            with pytest.raises(UserError, match="has taken it over"):
                folder.require_owner(earlier)
    assert len(set(groups)) == 4
    folder.begin_attempt(config, 1)
    with pytest.raises(UserError, match="attempt 5 has taken it over"):
        folder.begin_group(config, 1, command, first=False)


def test_a_worker_that_sees_another_folder_does_not_begin(tmp_path: Path) -> None:
    """As with `run.root` on the disk of the driver's node: it would start from step 0 for ever."""
    config = load_train_config("tiny")
    command = RunFolder(str(tmp_path / "driver")).begin_attempt(config, None)
    with pytest.raises(UserError, match=r"give a run\.root that all nodes share"):
        RunFolder(str(tmp_path / "worker")).begin_group(config, None, command, first=True)
    with pytest.raises(UserError, match=r"give a run\.root that all nodes share"):
        RunFolder(str(tmp_path / "worker")).require_visible(command)
    assert not (tmp_path / "worker").exists()


def test_an_attempt_whose_folder_was_removed_stops(tmp_path: Path) -> None:
    """The same name begins anew, and its numbers with it: an old attempt's number is greater."""
    folder, config = RunFolder(str(tmp_path / "run")), load_train_config("tiny")
    old = [folder.begin_attempt(config, None) for _ in range(3)][-1]
    store = CheckpointStore(folder.url, lambda: folder.require_owner(old))
    shutil.rmtree(folder.url)
    new = folder.begin_attempt(config, None)
    for check in (folder.require_owner, folder.require_command):
        with pytest.raises(UserError, match="attempt 3 is no longer recorded there"):
            check(old)
        check(new)
    with pytest.raises(UserError, match="this one stops"):
        store.save(step=400, model={}, training={}, meta={"step": 400}, files={}, metrics={})
        store.wait()
    assert folder.steps() == []


def test_a_damaged_checkpoint_of_a_later_step_hides_no_progress(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ends = [5000, lost(), 4200, lost(), lost(), 4400, None]
    assert attempts(monkeypatch, tmp_path, ends).count == len(ends)


def test_a_checkpoint_counts_where_old_ones_cannot_be_removed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    refused, guarded = UserError("step-00000001: access denied"), []
    store = CheckpointStore(str(tmp_path), lambda: guarded.append(1))
    monkeypatch.setattr(store._pruner, "prune", MagicMock(side_effect=refused))
    for step in (1, 2):
        store.save(step=step, model={}, training={}, meta={"step": step}, files={}, metrics={})
        store.wait()
    assert store.folder.steps() == [1, 2]
    assert "old checkpoints stay: step-00000001: access denied" in caplog.text
    store.guard = MagicMock(side_effect=UserError("taken over"))
    with pytest.raises(UserError, match="taken over"):
        store._prune(MagicMock(keep_best=3, step=2))


def test_a_file_system_whose_server_is_away_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "a").write_bytes(b"x")
    errors = [OSError(number, os.strerror(number)) for number in (errno.ESTALE, errno.ETIMEDOUT)]
    truly = Path.open

    def opened(path: Path, *arguments: Any, **options: Any) -> Any:
        if errors:
            raise errors.pop()
        return truly(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", opened)
    monkeypatch.setattr("pipeline.storage.outage_retry.WAITS", (0.0,) * 5)
    with pytest.raises(StorageDown, match="its file server is away"):
        storage.read_bytes(str(tmp_path / "a"))
    assert storage.retry_outages(lambda: storage.read_bytes(str(tmp_path / "a")), "a") == b"x"


def test_what_is_only_noted_ends_no_run() -> None:
    for refused in (UserError("nonfinite.jsonl: damaged"), StorageDown("s3://b: away")):
        folder = MagicMock(note_once=MagicMock(side_effect=refused))
        channel = DriverChannel(None)
        incidents = Incidents(folder, channel, 0, {})
        incidents.not_finite(7, ["a"])
        lines = [event.line for event in channel.waiting]
        assert lines == [
            f"not recorded in nonfinite.jsonl: {refused}",
            "step 7 skipped: not finite",
        ]


def run(
    monkeypatch: pytest.MonkeyPatch, trainer: Callable[..., None], contacts: int, gone: int = 0
) -> None:
    """One attempt whose trainer, workers and cluster are replaced."""
    report = Report([], contacts, gone)
    monkeypatch.setattr(ray, "wait", lambda refs, timeout: (refs, []))
    monkeypatch.setattr(ray, "get", lambda ref: report)
    monkeypatch.setattr(attempt, "LISTEN_SECONDS", 0.2)
    monkeypatch.setattr(attempt, "start_channel", MagicMock)
    monkeypatch.setattr(attempt, "on_loopback", lambda: True)
    monkeypatch.setattr(attempt, "run_trainer", trainer)
    attempt.run_attempt(load_train_config("tiny"), "run", "owner")


def test_sigterm_wins_over_a_worker_that_dies_of_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def dies(config: Any, payload: Any, scratch: str, outcome: attempt.Outcome) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.3)
        outcome.error = lost()

    with pytest.raises(Stopped, match="SIGTERM"):
        run(monkeypatch, dies, contacts=1)
    assert "failed while it stopped, after its last checkpoint: " in caplog.text


def test_sigterm_is_answered_while_workers_are_only_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def waits(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    with pytest.raises(Stopped, match="SIGTERM"):
        run(monkeypatch, waits, contacts=0)


@pytest.mark.parametrize("said", [True, False])
def test_sigterm_is_answered_while_lost_workers_are_waited_for(
    said: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within one attempt, Ray waits for hours for a node instead of one that was taken away."""

    def waits(*_: Any) -> None:
        time.sleep(3)  # in which the driver notices
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    monkeypatch.setattr(attempt, "QUIET_SECONDS", 60 if said else 0.2)
    monkeypatch.setattr(attempt.Growth, "lacks_room", lambda _: True)
    with pytest.raises(Stopped, match="SIGTERM"):
        run(monkeypatch, waits, contacts=1, gone=int(said))


def test_user_errors_are_found_inside_what_ray_raises() -> None:
    try:
        try:
            raise UserError("no such bucket")
        except UserError as inner:
            raise RuntimeError("worker failed") from inner
    except RuntimeError as outer:
        assert str(find_user_error(outer)) == "no such bucket"
    assert find_user_error(RuntimeError("other")) is None


def test_want_of_memory_is_the_users_to_mend(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Ray's words of a pod of 3 GiB, where the last line is about Ray's settings."""
    ended = RuntimeError(
        "1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: "
        "10.0.0.1, ID: 2a) was 2.86GB used / 3.00GB limit (0.954322)\nOOM kill reason: Memory usage"
        "\nRefer to the documentation on how to address the out of memory issue: https://docs."
    )
    with pytest.raises(
        UserError, match=r"last: out of memory on its node \(2.86GB used / 3.00GB\)"
    ):
        attempts(monkeypatch, tmp_path, [ended, ended, ended])
    for text in (
        "CUDA out of memory. Tried to allocate 2.00 GiB",
        "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes",
        "Unable to allocate 1.00 EiB for an array",
    ):
        assert "scaling.micro_batch" in root_cause(RuntimeError(text))
    assert "memory" not in root_cause(lost())


def test_a_full_disk_of_a_worker_is_no_bug() -> None:
    full = RuntimeError("a worker failed")
    full.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    assert fault_of_environment(full)
    assert isinstance(_given_up("run", 3, full), UserError)
    for other in (RuntimeError("x"), OSError(errno.ENOENT, "No such file")):
        assert not fault_of_environment(other)
        assert not isinstance(_given_up("run", 3, other), UserError)
