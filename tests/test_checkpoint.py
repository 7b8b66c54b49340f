"""Checkpoints are whole or not there, survive outages, and are never believed unread."""

from __future__ import annotations

import errno
import json
import logging
import pickle
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest
import torch
from conftest import S3Server
from faulty_proxy import faulty_proxy

from era import ErA, ErAConfig
from pipeline import storage
from pipeline.checkpoint import (
    COMMIT,
    MODEL,
    TRAINING,
    CheckpointStore,
    DamagedError,
    fingerprint,
    load_model,
    open_checkpoint,
    ranked,
    resolve,
)
from pipeline.errors import UserError
from pipeline.runfolder.names import CLAIM

CONFIG = ErAConfig(
    stages=1,
    kernels=2,
    kernel_size=5,
    radius_max=2.0,
    prior_channels=(4, 8),
    error_channels=(4,),
    estimator_channels=(4,),
)


def save(store: CheckpointStore, step: int, psnr: float | None = None, **changes: Any) -> None:
    """Save a checkpoint of a fresh small network, seeded by the step."""
    torch.manual_seed(step)
    job = {
        "step": step,
        "model": ErA(CONFIG).state_dict(),
        "training": {"step": step, "rng": torch.get_rng_state(), "lists": [1, [2.0]]},
        "meta": {"step": step, "model": CONFIG.to_dict()},
        "files": {"metrics.jsonl": f'{{"step": {step}}}\n'.encode()},
        "metrics": {} if psnr is None else {"val/psnr": psnr},
        **changes,
    }
    store.save(**job)
    store.wait()


@pytest.fixture(params=["local", "s3"])
def run_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A run's folder, on disk and on a real S3 server."""
    if request.param == "local":
        return str(tmp_path / "runs" / "r")
    server: S3Server = request.getfixturevalue("s3_server")
    return storage.join(server.url, "runs", "r")


def test_what_is_saved_comes_back_to_the_bit(run_url: str) -> None:
    store = CheckpointStore(run_url)
    save(store, 200, 20.0)
    loaded = CheckpointStore(run_url).load_latest()
    assert loaded is not None
    latest, state, training = loaded.checkpoint, loaded.weights, loaded.training
    assert (latest.name, latest.step, latest.metrics) == ("step-00000200", 200, {"val/psnr": 20.0})
    torch.manual_seed(200)
    expected = ErA(CONFIG).state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    assert training["lists"] == [1, [2.0]] and training["rng"].dtype == torch.uint8
    assert loaded.run_files == {"metrics.jsonl": b'{"step": 200}\n'}
    assert storage.read_text(storage.join(run_url, "metrics.jsonl")) == '{"step": 200}\n'


def test_damaged_and_unfinished_ones_are_passed_over_aloud(
    run_url: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("era"), "propagate", True)
    told: list[str] = []
    store = CheckpointStore(run_url, warn=told.append)
    for step in (100, 200, 300, 400):
        save(store, step, float(step), keep_best=9)
    storage.delete(storage.join(store.url_of(400), COMMIT))
    storage.delete(storage.join(store.url_of(300), TRAINING))
    weights = storage.join(store.url_of(200), MODEL)
    data = bytearray(storage.read_bytes(weights))
    data[-1] ^= 1
    storage.write_bytes(weights, bytes(data))

    loaded = store.load_latest()
    assert loaded is not None and loaded.checkpoint.step == 100
    for step, reason in ((400, "no COMMIT"), (300, "training.pt: missing"), (200, "sha256")):
        lines = [line for line in told if checkpoint_in(line, step)]
        assert len(lines) == 1 and reason in lines[0] and "passed over" in lines[0]
    best = store.folder.best()
    assert best is not None and best.step == 200  # by COMMIT and sizes: its content is unread
    assert load_model(run_url).url == resolve(run_url).url == store.url_of(100)
    assert any("sha256" in r.getMessage() for r in caplog.records)
    with pytest.raises(DamagedError, match="sha256"):
        load_model(store.url_of(200))


def checkpoint_in(message: str, step: int) -> bool:
    """Whether a message names a step's checkpoint."""
    return f"step-{step:08d}" in message


def test_best_and_last_are_kept_and_leftovers_go(tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path))
    (tmp_path / "checkpoints" / "step-00000050").mkdir(parents=True)  # killed while it was written
    for step, psnr in ((100, 21.0), (200, 25.0), (300, 24.0), (400, 22.0), (500, None)):
        save(store, step, psnr)
    assert store.folder.steps() == [200, 300, 500]
    save(store, 600, 23.0, keep_best=4)
    assert store.folder.steps() == [200, 300, 500, 600]  # 500 has no score, and a place was free
    assert not (tmp_path / "checkpoints" / "step-00000050").exists()
    best = store.folder.best()
    assert best is not None and best.step == 200


def test_going_on_before_a_damaged_checkpoint_keeps_the_new_one(tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path))
    save(store, 100, 30.0)
    save(store, 300, 31.0)
    (tmp_path / "checkpoints" / "step-00000300" / TRAINING).write_bytes(b"cut")
    save(store, 200, 10.0, keep_best=1)  # a run resumed from 100
    latest = store.folder.latest()
    assert latest is not None and latest.step == 200


def test_pruning_leaves_what_this_attempt_does_not_know_to_be_its_own(run_url: str) -> None:
    """Newer steps, unreadable ones and ones passed over stay, whatever the scores say."""
    older, newer = CheckpointStore(run_url), CheckpointStore(run_url)
    for step, psnr in ((100, 30.0), (200, 29.0), (300, 1.0), (400, 2.0), (500, 3.0)):
        save(newer, step, psnr, keep_best=9)
    commit = storage.join(older.url_of(100), COMMIT)
    told = storage.read_bytes(commit)
    storage.write_bytes(commit, b"{")  # one bad answer, for the best of all
    older._pruner.prune(keep_best=1, last=300)
    storage.write_bytes(commit, told)
    assert older.folder.steps() == [100, 200, 300, 400, 500]
    training = storage.join(older.url_of(500), TRAINING)
    told = storage.read_bytes(training)
    storage.write_bytes(training, b"cut")
    loaded = older.load_latest()
    assert loaded is not None and loaded.checkpoint.step == 400
    storage.write_bytes(training, told)
    save(older, 600, 1.0, keep_best=1)
    assert older.folder.steps() == [100, 500, 600]


def test_an_attempt_that_was_overtaken_deletes_and_commits_nothing(run_url: str) -> None:
    """The newer attempt takes over between two requests of the older one: at each of them."""
    save(CheckpointStore(run_url), 100, 20.0, keep_best=9)
    save(CheckpointStore(run_url), 200, 10.0, keep_best=9)
    done, allowed = False, 0
    while not done:
        left = iter(range(allowed))

        def guard(left: Iterator[int] = left) -> None:
            if next(left, None) is None:
                raise UserError("taken over")

        older = CheckpointStore(run_url, guard, "0001-old")
        before = older_files(run_url)
        try:
            save(older, 300, 30.0, keep_best=1)
            done = True
        except UserError:
            allowed += 1
            removed = before - older_files(run_url)
            assert len(removed) <= max(0, allowed - PUTS)  # one for each guard after COMMIT
            assert 300 in older.folder.steps() or not removed
    assert older.folder.steps() == [300]
    latest = older.folder.latest()
    assert latest is not None and latest.commit.attempt == "0001-old"


PUTS = 9  # guards of a save: two around its claim, five files, COMMIT, newest.json


def older_files(run_url: str) -> set[str]:
    """The files of the checkpoints before step 300."""
    return {e.relative for e in storage.find(run_url) if "step-00000300" not in e.relative}


def test_an_upload_that_outlives_its_guard_is_not_repeated(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """COMMIT fails on its way, and meanwhile another attempt takes the run over."""
    overtaken: list[str] = []

    def plan(method: str, path: str) -> str:
        if method == "PUT" and path.endswith(COMMIT) and not overtaken:
            overtaken.append(path)
            return "slowdown"
        return ""

    def guard() -> None:
        if overtaken:
            raise UserError("taken over")

    with faulty_proxy(s3_server.endpoint, plan) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        store = CheckpointStore(storage.join(s3_server.url, "r"), guard)
        with pytest.raises(UserError, match="taken over"):
            save(store, 1)
    assert store.folder.steps() == []


def test_saving_a_step_again_is_never_half_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(str(tmp_path))
    save(store, 100)
    save(store, 200)
    real = storage.write_bytes

    def killed_at_training(url: str, data: bytes) -> None:
        if url.endswith(TRAINING):
            raise RuntimeError("killed")
        real(url, data)

    monkeypatch.setattr(storage, "write_bytes", killed_at_training)
    with pytest.raises(RuntimeError, match="killed"):
        save(store, 200, model={"other": torch.ones(1)})
    latest = CheckpointStore(str(tmp_path)).load_latest()
    assert latest is not None and latest.checkpoint.step == 200  # as it was
    assert "other" not in latest.weights
    monkeypatch.undo()
    save(CheckpointStore(str(tmp_path)), 200, model={"other": torch.ones(1)})
    latest = CheckpointStore(str(tmp_path)).load_latest()
    assert latest is not None and "other" in latest.weights


def test_a_folder_of_an_earlier_version_is_read_and_left_as_it_is(run_url: str) -> None:
    """Without a claim, and with a newest.json that has no name."""
    store = CheckpointStore(run_url)
    save(store, 100)
    storage.delete(storage.join(store.url_of(100), CLAIM))
    storage.write_json(storage.join(run_url, "checkpoints", "newest.json"), {"step": 100})
    before = {e.relative: e.size for e in storage.find(store.url_of(100))}
    newer = CheckpointStore(run_url, attempt="0002-new")
    loaded = newer.load_latest()
    assert loaded is not None and loaded.checkpoint.name == "step-00000100"
    save(newer, 100)
    assert {e.relative: e.size for e in storage.find(store.url_of(100))} in (before, {})
    loaded = newer.load_latest()
    assert loaded is not None and loaded.checkpoint.commit.attempt == "0002-new"
    assert loaded.checkpoint.name.startswith("step-00000100.0002-")
    assert newer.folder.steps() == [100]


@pytest.mark.parametrize("where", ["local", "s3"])
def test_a_file_is_created_only_where_there_is_none(
    where: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    root = str(tmp_path) if where == "local" else request.getfixturevalue("s3_server").url
    url = storage.join(root, "folder", "claim")
    assert storage.create(url, b"first")
    if storage.create(url, b"second"):  # this server ignores conditions: it must not be local
        assert where == "s3"
    else:
        assert storage.read_bytes(url) == b"first"


def test_a_file_that_is_created_is_whole_or_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = str(tmp_path / "claim")
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.storage.local.write_all", _disk_is_full)
        with pytest.raises(UserError, match="the disk is full"):
            storage.create(url, b"first")
    assert list(tmp_path.iterdir()) == []
    with monkeypatch.context() as patch:
        patch.setattr("os.link", _no_hard_links)
        assert storage.create(url, b"first")
        assert not storage.create(url, b"second")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"first"]


def _disk_is_full(stream: IO[bytes], data: bytes, path: Path) -> None:
    stream.write(data[:1])
    raise OSError(errno.ENOSPC, "no space")


def _no_hard_links(*_: object) -> None:
    raise PermissionError(errno.EPERM, "not permitted")


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    save(CheckpointStore(str(tmp_path)), 1)
    folder = tmp_path / "checkpoints" / "step-00000001"
    evil = pickle.dumps(_Evil(str(tmp_path / "pwned")))
    (folder / TRAINING).write_bytes(evil)
    commit = json.loads((folder / COMMIT).read_text())
    commit["files"][TRAINING] = fingerprint(evil)
    (folder / COMMIT).write_text(json.dumps(commit))
    with pytest.raises(DamagedError, match="not a training state"):
        open_checkpoint(str(folder)).load_training()
    assert not (tmp_path / "pwned").exists()


class _Evil:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (Path(self.path),)


def test_training_does_not_wait_for_a_silent_bucket(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.storage.outage_retry.WAITS", (0.5,) * 20)
    monkeypatch.setattr("pipeline.storage.bucket.RETRY_FOR", 0.5)  # seconds, then it is "down"
    failing = [True]
    with faulty_proxy(s3_server.endpoint, lambda *_: "slowdown" if failing[0] else "") as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        store = CheckpointStore(storage.join(s3_server.url, "r"))
        monkeypatch.setattr(store, "wait", lambda: None)
        save(store, 1)  # returns while the bucket answers nothing
        while proxy.faults() < 20:  # more than one round of tries
            time.sleep(0.05)
        failing[0] = False
        CheckpointStore.wait(store)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.endpoint)
    assert store.folder.latest_step() == 1


def test_resuming_reads_one_checkpoint_once(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(storage.join(s3_server.url, "r"))
    for step in (1, 2, 3):
        save(store, step, 10.0 - step)
    with faulty_proxy(s3_server.endpoint, lambda *_: "") as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        loaded = CheckpointStore(store.run_url).load_latest()
    assert loaded is not None and loaded.checkpoint.step == 3 and loaded.checkpoint.meta
    folder = f"/{loaded.checkpoint.url.removeprefix('s3://')}"
    expected = {f"{folder}/{name}": p["bytes"] for name, p in loaded.checkpoint.files.items()}
    large = {path: size for path, size in proxy.read.items() if path in expected}
    assert large == expected
    others = {p.rpartition("/")[2]: n for p, n in proxy.read.items() if p not in expected}
    assert others.keys() - {""} <= {COMMIT, "newest.json", s3_server.bucket}


def test_an_outage_is_no_reason_to_pass_a_checkpoint_over(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(storage.join(s3_server.url, "r"))
    save(store, 1)
    save(store, 2)

    def refuse_weights(method: str, path: str) -> str:
        return "AccessDenied" if "00000002/model" in path else ""

    with faulty_proxy(s3_server.endpoint, refuse_weights) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        with pytest.raises(UserError, match="access denied"):
            store.load_latest()


def test_a_bucket_that_stays_away_stops_the_run_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.storage.outage_retry.WAITS", (0.01, 0.01))
    (tmp_path / "file").write_text("")
    store = CheckpointStore(str(tmp_path / "file" / "run"))
    with pytest.raises(UserError, match="a part of the path is a file"):
        save(store, 1)
    with pytest.raises(UserError, match="a part of the path is a file"):
        save(store, 2)


def test_load_model_takes_a_run_a_checkpoint_and_says_what_is_missing(run_url: str) -> None:
    store = CheckpointStore(run_url)
    for step, psnr in ((1, 10.0), (2, 12.0), (3, 11.0)):
        save(store, step, psnr)
    assert load_model(run_url).url == store.url_of(2)
    loaded = load_model(store.url_of(3))
    assert loaded.meta["step"] == 3 and loaded.config == CONFIG and not loaded.model.training
    with pytest.raises(UserError, match="no such run, checkpoint or model"):
        load_model(storage.join(run_url, "nowhere"))
    with pytest.raises(UserError, match="no finished checkpoint there"):
        load_model(storage.join(run_url, "checkpoints"))


def test_a_checkpoint_that_is_removed_while_it_is_read_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process prunes it between two looks."""
    store = CheckpointStore(str(tmp_path))
    save(store, 1), save(store, 2)
    real = storage.size

    def removed(url: str) -> int:
        if url == f"{store.url_of(2)}/COMMIT":
            shutil.rmtree(store.url_of(2))
        return real(url)

    monkeypatch.setattr(storage, "size", removed)
    assert load_model(str(tmp_path)).meta["step"] == 1


def test_a_network_of_another_version_is_one_clear_line(tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path))
    save(store, 1, meta={"step": 1, "model": {**CONFIG.to_dict(), "dragons": 3}})
    with pytest.raises(UserError, match=r"not one that this version knows .*dragons"):
        load_model(str(tmp_path))
    save(store, 2, model={"unknown": torch.ones(1)})
    with pytest.raises(UserError, match="not one that this version knows"):
        load_model(str(tmp_path))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"stages": 1000, "share_priors": False}, "its configuration has more"),
        ({"prior": "resunet", "prior_blocks": 1000}, "its configuration has more"),
        ({"prior_channels": [4096] * 4}, "its configuration has more"),
        ({"kernels": 1000, "kernel_size": 1023}, "must be at most"),
    ],
)
def test_a_strangers_network_takes_no_memory_before_it_is_compared(
    changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    save(
        CheckpointStore(str(tmp_path)),
        1,
        meta={"step": 1, "model": {**CONFIG.to_dict(), **changes}},
    )
    with pytest.raises(UserError, match=f"not one that this version knows .*({said})"):
        load_model(str(tmp_path))


def test_ranking_knows_which_way_is_better_and_ignores_what_is_no_number() -> None:
    values = [{"val/mae": v, "val/psnr": v} for v in (2.0, float("nan"), 1.0, 3.0, float("inf"))]
    assert ranked(range(5), "val/mae", values.__getitem__) == [2, 0, 3]
    assert ranked(range(5), "val/psnr", values.__getitem__) == [3, 0, 2]
    assert ranked(range(5), "val/other", values.__getitem__) == []
