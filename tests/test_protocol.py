"""Two attempts of one run over a store that is late: nothing committed is lost, the newest wins."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import storage
from pipeline.checkpoint import CheckpointStore
from pipeline.config import load_train_config
from pipeline.errors import UserError
from pipeline.runfolder import RunFolder
from pipeline.storage.entry import Entry, Kind

RUN = "s3://bucket/run"
CONFIG = load_train_config("tiny")


class LateStore:
    """Objects in memory. Listings may be old; a hook runs before every write and deletion."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.listed: dict[str, bytes] = {}  # what listings show while they are stale
        self.stale = False
        self.hook: Callable[[], None] = lambda: None

    def kind(self, url: str) -> Kind:
        if url in self.objects:
            return "file"
        return "folder" if any(key.startswith(url + "/") for key in self.objects) else "missing"

    def size(self, url: str) -> int:
        return len(self.read(url, None, None))

    def modified(self, url: str) -> datetime:
        return datetime.now(UTC)

    def find(self, url: str) -> list[Entry]:
        seen = self.listed if self.stale else self.objects
        below = {k[len(url) + 1 :]: len(v) for k, v in seen.items() if k.startswith(url + "/")}
        return [Entry(f"{url}/{name}", name, below[name]) for name in sorted(below)]

    def list_names(self, url: str) -> list[str]:
        return sorted({entry.relative.partition("/")[0] for entry in self.find(url)})

    def read(self, url: str, start: int | None, end: int | None, most: int | None = None) -> bytes:
        if url not in self.objects:
            raise UserError(f"{url}: no such object; check the URL")
        return self.objects[url][start:end]

    def write(self, url: str, data: bytes) -> None:
        self.hook()
        self.objects[url] = data

    def write_from(self, path: Path, url: str) -> None:
        self.write(url, path.read_bytes())

    def delete(self, url: str) -> None:
        self.hook()
        for key in [k for k in self.objects if k == url or k.startswith(url + "/")]:
            del self.objects[key]

    def remove_unfinished(self, url: str) -> None:
        """Nothing is ever half written."""

    def check_writable(self, url: str) -> None:
        """It always is."""


class Node:
    """A machine that runs the command: it begins an attempt, resumes, and saves steps."""

    def __init__(self) -> None:
        folder = RunFolder(RUN)
        self.attempt = folder.begin_attempt(CONFIG, None)
        guard = lambda: folder.require_owner(self.attempt)  # noqa: E731
        self.store = CheckpointStore(RUN, guard, self.attempt, warn=lambda _: None)
        loaded = self.store.load_latest()
        self.step = loaded.checkpoint.step if loaded else 0
        self.resumed = self.step

    def save(self, score: int) -> bool:
        """Save the next step; return false where another attempt has taken over."""
        step = self.step + 1
        lines = "".join(f'{{"step": {s}}}\n' for s in range(1, step + 1)).encode()
        try:
            self.store.save(
                step=step,
                model={"w": torch.full((2,), float(step))},
                training={"step": step},
                meta={"step": step, "model": {}},
                files={"metrics.jsonl": lines},
                metrics={"val/psnr": float(score)},
                keep_best=1,
            )
            self.store.wait()
        except UserError as error:
            assert "has taken it over" in str(error)
            return False
        self.step = step
        return True


SAVES = st.lists(st.integers(0, 9), min_size=1, max_size=4)


@pytest.fixture
def late_store(monkeypatch: pytest.MonkeyPatch) -> list[LateStore]:
    """Holds the store that stands behind every URL."""
    held = [LateStore()]
    monkeypatch.setattr(storage, "_files", lambda url: held[0])
    return held


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(before=SAVES, after=SAVES, moment=st.integers(0, 14), stale=st.booleans())
def test_a_node_that_hangs_anywhere_in_a_save_loses_nothing_of_the_newer_attempt(
    late_store: list[LateStore], before: list[int], after: list[int], moment: int, stale: bool
) -> None:
    """The older node hangs before its n-th request; the newer one works; the older one wakes up."""
    late_store[0] = store = LateStore()
    older = Node()
    for score in before[:-1]:
        assert older.save(score)
    committed = older.step
    newer: list[Node] = []
    countdown = [moment]

    def hang() -> None:
        countdown[0] -= 1
        if countdown[0] != -1 or threading.current_thread().name != "era-checkpoints":
            return
        store.hook = lambda: None
        newer.append(Node())
        store.listed, store.stale = dict(store.objects), stale
        for score in after:
            assert newer[0].save(score)
        store.stale = False

    store.hook = hang
    done = older.save(before[-1])
    store.hook = lambda: None
    if not newer:
        return
    assert newer[0].resumed >= committed  # nothing committed is lost
    assert not done or newer[0].resumed == older.step  # the newest attempt owns the run
    assert not older.save(9)
    found = CheckpointStore(RUN, warn=lambda _: None).load_latest()
    same_step = newer[0].step == committed + 1  # the request that was on its way may hit it
    if found is None:
        assert same_step
        return
    step = found.checkpoint.step
    if not same_step:
        assert step == newer[0].step
        assert found.checkpoint.commit.attempt == newer[0].attempt
    assert step >= min(newer[0].resumed, newer[0].step)
    assert found.weights["w"].tolist() == [float(step)] * 2
    curve = [f'{{"step": {n}}}' for n in range(1, step + 1)]
    assert found.run_files["metrics.jsonl"].decode().splitlines() == curve  # one curve
