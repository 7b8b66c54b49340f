"""A store in memory that is late: every request of a node waits until a test lets it pass."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from pipeline.checkpoint import CheckpointStore
from pipeline.config import load_train_config
from pipeline.errors import StorageDown, UserError
from pipeline.runfolder import RunFolder
from pipeline.storage.entry import Entry, Kind

RUN = "s3://bucket/run"
CONFIG = load_train_config("tiny")


@dataclass
class Request:
    """A write or deletion on its way: its URL, and what it does when it arrives."""

    url: str
    apply: Callable[[], bool]


class LateStore:
    """Objects in memory.

    Args:
        conditional: whether `create` is refused where an object exists, or replaces it.
    """

    def __init__(self, conditional: bool) -> None:
        self.objects: dict[str, bytes] = {}
        self.listed: dict[str, bytes] | None = None  # what listings show while they are late
        self.conditional = conditional
        self.nodes: dict[int, Node] = {}  # by thread

    def kind(self, url: str) -> Kind:
        if url in self.objects:
            return "file"
        return "folder" if any(key.startswith(url + "/") for key in self._seen()) else "missing"

    def size(self, url: str) -> int:
        return len(self.read(url, None, None))

    def modified(self, url: str) -> datetime:
        return datetime.now(UTC)

    def find(self, url: str) -> list[Entry]:
        seen = self._seen()
        below = {k[len(url) + 1 :]: len(v) for k, v in seen.items() if k.startswith(url + "/")}
        return [Entry(f"{url}/{name}", name, below[name]) for name in sorted(below)]

    def list_names(self, url: str) -> list[str]:
        return sorted({entry.relative.partition("/")[0] for entry in self.find(url)})

    def read(self, url: str, start: int | None, end: int | None, most: int | None = None) -> bytes:
        if url not in self.objects:
            raise UserError(f"{url}: no such object; check the URL")
        return self.objects[url][start:end]

    def write(self, url: str, data: bytes) -> None:
        self._send(Request(url, lambda: self._write(url, data)))

    def create(self, url: str, data: bytes) -> bool:
        taken = lambda: self.conditional and url in self.objects  # noqa: E731
        return self._send(Request(url, lambda: not taken() and self._write(url, data)))

    def write_from(self, path: Path, url: str) -> None:
        self.write(url, path.read_bytes())

    def delete(self, url: str) -> None:
        self._send(Request(url, lambda: self._delete(url)))

    def remove_unfinished(self, url: str) -> None:
        """Nothing is ever half written."""

    def check_writable(self, url: str) -> None:
        """It always is."""

    def _seen(self) -> dict[str, bytes]:
        return self.objects if self.listed is None else self.listed

    def _write(self, url: str, data: bytes) -> bool:
        self.objects[url] = data
        return True

    def _delete(self, url: str) -> bool:
        for key in [k for k in self.objects if k == url or k.startswith(url + "/")]:
            del self.objects[key]
        return True

    def _send(self, request: Request) -> bool:
        node = self.nodes.get(threading.get_ident())
        return request.apply() if node is None else node.send(request)


class Node:
    """A machine that runs the command: it begins an attempt, resumes, and saves steps.

    Its store's thread stops before every write and deletion, until `let_pass` is called.
    """

    def __init__(self, files: LateStore) -> None:
        self.files = files
        folder = RunFolder(RUN)
        self.attempt = folder.begin_attempt(CONFIG, None)

        def guard() -> None:
            files.nodes[threading.get_ident()] = self
            folder.require_owner(self.attempt)

        self.store = CheckpointStore(RUN, guard, self.attempt, warn=lambda _: None)
        loaded = self.store.load_latest()
        self.step = self.resumed = loaded.checkpoint.step if loaded else 0
        self.saving = self.dead = False
        self.may_save = False  # whether it was the owner, or could not know better
        self.waiting: Request | None = None
        self._arrived, self._verdicts = threading.Event(), queue.Queue[str]()

    def begin_save(self, score: int) -> None:
        """Begin to save the next step; returns when its first request is on its way."""
        step, self.saving = self.step + 1, True
        self.store.save(
            step=step,
            model={"w": torch.full((2,), float(step))},
            training={"step": step, "by": self.attempt},
            meta={"step": step, "model": {}},
            files={"metrics.jsonl": curve(step)},
            metrics={"val/psnr": float(score)},
            keep_best=1,
        )
        self._settle()

    def let_pass(self, verdict: str = "arrives") -> Request | None:
        """Decide about the request on its way; returns it. The node goes on to its next one.

        Args:
            verdict: arrives; unanswered: it arrives, and the node takes it for lost;
                refused: it does not arrive; late: the node takes it for lost, and has sent it.
        """
        request, self.waiting = self.waiting, None
        self._arrived.clear()
        self._verdicts.put(verdict)
        self._settle()
        return request

    def error(self) -> UserError | None:
        """After a save: None once it is done, else what stopped it."""
        try:
            self.store.wait()
        except UserError as error:
            return error
        return None

    def send(self, request: Request) -> bool:
        """In the store's thread: wait for the verdict about a request."""
        self.waiting = request
        self._arrived.set()
        verdict = self._verdicts.get()
        if verdict == "dead":
            raise SystemExit
        done = request.apply() if verdict in ("arrives", "unanswered") else False
        if verdict != "arrives":
            raise StorageDown("no answer")
        return done

    def end(self) -> None:
        """End the store's thread."""
        if self.waiting is not None:
            self._verdicts.put("dead")
        elif self.store._thread is not None:
            self.store._error = None
            self.store._queue.put(_End())  # type: ignore[arg-type]

    def _settle(self) -> None:
        """Wait until a request is on its way, or the save has ended."""
        jobs = self.store._queue
        while not self._arrived.wait(0.0002) and jobs.unfinished_tasks:
            time.sleep(0)
        self.saving = self.waiting is not None


class _End:
    """A job that ends the thread."""

    step = 0

    def contents(self) -> dict[str, bytes]:
        raise SystemExit


def curve(step: int) -> bytes:
    """metrics.jsonl up to a step."""
    return "".join(f'{{"step": {s}}}\n' for s in range(1, step + 1)).encode()
