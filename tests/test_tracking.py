"""metrics.jsonl is the truth; W&B has every step of it once, whatever happens to either."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import S3Server

from pipeline import storage
from pipeline.case import Case
from pipeline.config.schema import TrackingSection
from pipeline.errors import StorageDown, UserError
from pipeline.tracking import Spool, Tracker
from pipeline.tracking.mirror import resolved_mode, run_id
from pipeline.tracking.segments import history, offline_runs, records


@pytest.fixture(autouse=True)
def no_account(monkeypatch: pytest.MonkeyPatch) -> None:
    """No W&B settings of the machine."""
    for name in ("API_KEY", "MODE", "DIR", "BASE_URL", "DISABLED"):
        monkeypatch.delenv(f"WANDB_{name}", raising=False)


def tracker(folder: Path, run_url: str, resume: int = 0, mode: str = "disabled") -> Tracker:
    """A tracker of a new attempt, with a spool of its own."""
    spool = folder / f"spool-{time.monotonic_ns()}"
    spool.mkdir()
    return Tracker(
        spool,
        run_url=run_url,
        config={"train": {"steps": 9}},
        settings=TrackingSection(wandb=mode, group="sweep", images=1),
        resume_step=resume,
        lineage={"data_manifest_sha256": "abc"},
    )


def attempt(track: Tracker, run_url: str, first: int, last: int, saved: int) -> None:
    """Log steps; a checkpoint is made at step `saved`."""
    for step in range(first, last + 1):
        track.samples(step - 1, [f"k@{step}"], [step])
        track.log(step, {"train/loss": 1 / step})
        if step % 2 == 0:
            track.log(step, {"val/psnr": float(step)})
        if step == saved:
            for name, data in track.files().items():
                storage.write_bytes(storage.join(run_url, name), data)


def rows(run_url: str) -> list[dict[str, Any]]:
    """metrics.jsonl as it lies in the run."""
    text = storage.read_text(storage.join(run_url, "metrics.jsonl"))
    return [json.loads(line) for line in text.splitlines()]


def mirrored(run_url: str) -> list[dict[str, Any]]:
    """Every row in W&B's offline files, in order of the attempts, W&B's own columns left out.

    wandb writes them itself, in the version that pyproject.toml pins; it has no reader for Python.
    """
    found: list[dict[str, Any]] = []
    for name in offline_runs(run_url, run_id(run_url)):
        url = storage.join(run_url, "wandb", name, f"run-{run_id(run_url)}.wandb")
        for row in history(storage.read_bytes(url)):
            assert row["_step"] == row["global_step"]
            found.append({k: v for k, v in row.items() if not k.startswith("_")})
    return found


def merged(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What W&B should show of metrics.jsonl: one row per step."""
    steps: dict[int, dict[str, Any]] = {}
    for line in lines:
        row = dict(line)
        step = row.pop("step")
        steps.setdefault(step, {"global_step": step}).update(row)
    return list(steps.values())


def test_files_are_cut_back_to_the_checkpoint(tmp_path: Path) -> None:
    run_url = str(tmp_path / "run")
    attempt(tracker(tmp_path, run_url), run_url, 1, 5, saved=5)
    again = tracker(tmp_path, run_url, resume=3)
    attempt(again, run_url, 4, 6, saved=6)
    assert [row["step"] for row in rows(run_url)] == [1, 2, 2, 3, 4, 4, 5, 6, 6]
    samples = storage.read_text(storage.join(run_url, "samples.jsonl")).splitlines()
    assert [json.loads(line)["step"] for line in samples] == list(range(6))
    assert json.loads(samples[3]) == {"step": 3, "ids": ["k@4"], "crcs": [4]}
    fresh = tracker(tmp_path, run_url).files()
    assert fresh == {"metrics.jsonl": b""}


def test_spool_writes_json_only_and_refuses_what_is_none(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "a", str(tmp_path / "missing"), -1)
    spool.add({"step": 1, "x": float("nan"), "y": 2.0})
    assert spool.content() == b'{"step": 1, "x": null, "y": 2.0}\n'
    (tmp_path / "bad").write_text('{"step": 1}\nnot json\n')
    with pytest.raises(UserError, match="bad: not the JSON lines"):
        Spool(tmp_path / "b", str(tmp_path / "bad"), 5)


@pytest.mark.parametrize("where", ["local", "s3"])
def test_offline_files_hold_every_step_once_over_three_attempts(
    where: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    server: S3Server | None = request.getfixturevalue("s3_server") if where == "s3" else None
    run_url = storage.join(server.url, "run") if server else str(tmp_path / "run")
    # Killed without a word after step 6; its checkpoint was at 4.
    first = tracker(tmp_path, run_url, mode="offline")
    attempt(first, run_url, 1, 6, saved=4)
    first.close()
    # From 4 again; stopped in the middle of step 8, before its validation.
    time.sleep(1.1)  # W&B's folders are named by the second
    second = tracker(tmp_path, run_url, resume=4, mode="offline")
    attempt(second, run_url, 5, 7, saved=6)
    second.log(8, {"train/loss": 1 / 8})
    second.close()
    time.sleep(1.1)
    third = tracker(tmp_path, run_url, resume=6, mode="offline")
    third.images(8, [panel()])
    attempt(third, run_url, 7, 9, saved=9)
    third.close()

    plain = [{k: v for k, v in row.items() if "/im" not in k} for row in mirrored(run_url)]
    pictures = [row["restored/im.path"] for row in mirrored(run_url) if "restored/im.path" in row]
    assert plain == merged(rows(run_url))
    assert [row["global_step"] for row in plain] == list(range(1, 10))
    last = offline_runs(run_url, run_id(run_url))[-1]
    assert len(pictures) == 1
    assert storage.exists(storage.join(run_url, "wandb", last, "files", pictures[0]))


def test_offline_run_carries_id_group_config_and_no_host(tmp_path: Path) -> None:
    run_url = str(tmp_path / "trial")
    track = tracker(tmp_path, run_url, mode="offline")
    attempt(track, run_url, 1, 2, saved=2)
    track.close()
    (name,) = offline_runs(run_url, run_id(run_url))
    data = (tmp_path / "trial" / "wandb" / name / f"run-{run_id(run_url)}.wandb").read_bytes()
    run = next(r.run for r in records(data) if r.WhichOneof("record_type") == "run")
    assert (run.run_id, run.run_group, run.display_name) == (run_id(run_url), "sweep", "trial")
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert config["train"] == {"steps": 9}
    assert config["lineage"] == {"data_manifest_sha256": "abc"}
    whole = [row["global_step"] for row in history(data)]
    assert whole == [1, 2]
    for place in range(0, len(data), 13):  # damage hides what comes after it, and no more
        damaged = data[:place] + bytes([data[place] ^ 0x5A]) + data[place + 1 :]
        assert [row["global_step"] for row in history(damaged)] in ([], [1], whole, [2], [1, 88])
        assert len(list(history(data[:place]))) <= 2
    kinds = {r.WhichOneof("record_type") for r in records(data)}
    assert "environment" not in kinds
    assert run_id(run_url) == run_id(run_url) != run_id(run_url + "2")


def test_wandb_out_of_reach_neither_stops_nor_slows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("pipeline.tracking.mirror.INIT_SECONDS", 3.0)
    run_url = str(tmp_path / "run")
    track = tracker(tmp_path, run_url, mode="auto")
    attempt(track, run_url, 1, 4, saved=4)
    assert len(rows(run_url)) == 6  # all there, although W&B has not even begun
    track.close()
    assert mirrored(run_url) == merged(rows(run_url))  # offline instead


def test_what_a_killed_attempt_did_not_send_is_sent_by_the_next(tmp_path: Path) -> None:
    run_url = str(tmp_path / "run")
    script = f"""
import os, signal, sys, time
sys.path[:0] = {[str(Path(__file__).parent)]!r}
from pathlib import Path
from test_tracking import attempt, tracker
track = tracker(Path({str(tmp_path)!r}), {run_url!r}, mode="offline")
attempt(track, {run_url!r}, 1, 400, saved=300)
while track._mirror._offset == 0:
    time.sleep(0.02)
os.kill(os.getpid(), signal.SIGKILL)
"""
    environment = {k: v for k, v in os.environ.items() if k != "WANDB_SERVICE"}  # its own one
    killed = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    time.sleep(1.1)
    track = tracker(tmp_path, run_url, resume=300, mode="offline")
    attempt(track, run_url, 301, 410, saved=410)
    track.close()
    assert mirrored(run_url) == merged(rows(run_url))


def test_mode_follows_key_and_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    auto = TrackingSection(wandb="auto")
    assert resolved_mode(auto) == "offline"
    monkeypatch.setenv("WANDB_API_KEY", "k")
    assert resolved_mode(auto) == "online"
    words = {"disabled": "disabled", "dryrun": "offline", "run": "online", "onlin": "offline"}
    for word, mode in words.items():
        monkeypatch.setenv("WANDB_MODE", word)
        assert resolved_mode(auto) == mode
    monkeypatch.setenv("WANDB_DISABLED", "true")
    assert resolved_mode(auto) == "disabled"
    assert resolved_mode(TrackingSection(wandb="offline")) == "offline"


def test_rows_of_an_outage_are_uploaded_afterwards(
    s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bucket is away while files are published, and at the end; the next attempt uploads."""
    monkeypatch.setattr("pipeline.tracking.mirror.PUBLISH_SECONDS", 0.2)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    run_url = storage.join(s3_server.url, "run")
    first = tracker(tmp_path, run_url, mode="offline")
    attempt(first, run_url, 1, 4, saved=4)
    upload = storage.upload

    def fails(*_: object) -> None:
        raise StorageDown("the bucket is away")

    monkeypatch.setattr(storage, "upload", fails)
    while first._mirror._published_at < time.monotonic() - 0.1:
        time.sleep(0.02)
    first.close()
    assert mirrored(run_url) != merged(rows(run_url))
    monkeypatch.setattr(storage, "upload", upload)
    time.sleep(1.1)
    second = tracker(tmp_path, run_url, resume=4, mode="offline")
    attempt(second, run_url, 5, 6, saved=6)
    second.close()
    assert mirrored(run_url) == merged(rows(run_url))
    assert not list(tmp_path.glob("era-wandb-*/*"))


def test_a_session_that_breaks_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """W&B's own process is killed in the middle; every row comes once all the same."""
    monkeypatch.setattr("pipeline.tracking.mirror.PUBLISH_SECONDS", 1.2)
    run_url = str(tmp_path / "run")
    track = tracker(tmp_path, run_url, mode="offline")
    attempt(track, run_url, 1, 4, saved=4)
    while track._mirror._offset == 0:
        time.sleep(0.02)
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == os.getpid() and b"wandb" in (process / "cmdline").read_bytes():
                os.kill(int(process.name), signal.SIGKILL)
    attempt(track, run_url, 5, 8, saved=8)
    track.close()
    assert mirrored(run_url) == merged(rows(run_url))
    assert len(offline_runs(run_url, run_id(run_url))) == 2


def panel() -> Case:
    """Pictures of a few pixels."""
    image = np.full((8, 8, 3), 0.5, np.float32)
    return Case(
        key="im",
        blur=image,
        restored=image,
        sharp=image,
        kernels=np.ones((2, 3, 3), np.float32),
        weights=image[None, ..., 0],
        radius=image[..., 0],
        error=image,
    )
