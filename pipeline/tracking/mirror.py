"""W&B, at arm's length: a thread and a bounded queue, so that it never stops or slows a run.

One run id for all attempts, derived from the run's URL, and explicit steps: an attempt that repeats
steps sends the same rows under the same steps, and W&B keeps one of each. Offline segments of
several attempts merge when they are synchronised (`wandb sync`).
"""

from __future__ import annotations

import hashlib
import logging
import os
import queue
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pipeline import storage
from pipeline.config.schema import TrackingSection
from pipeline.tracking.panels import Panel

log = logging.getLogger("era")
QUEUE = 1000  # rows waiting; beyond that rows are left out of the mirror, not of metrics.jsonl
CLOSE_SECONDS = 30.0


def run_id(run_url: str) -> str:
    """W&B's id of a run: the same for every attempt."""
    return hashlib.sha256(run_url.encode()).hexdigest()[:16]


def resolved_mode(settings: TrackingSection) -> str:
    """online, offline or disabled; `auto` is online where there is a key."""
    if settings.wandb != "auto":
        return settings.wandb
    return "online" if os.environ.get("WANDB_API_KEY") else "offline"


def offline_folder(run_url: str) -> Path:
    """Where W&B keeps its files: WANDB_DIR, the run's folder, or the user's cache for S3 runs."""
    if os.environ.get("WANDB_DIR"):
        return Path(os.environ["WANDB_DIR"])
    if storage.is_local(run_url):
        return Path(run_url)
    return Path.home() / ".cache" / "era" / "wandb" / run_id(run_url)


class WandbMirror:
    """Sends rows and pictures from a thread of its own."""

    def __init__(self, run_url: str, config: dict[str, Any], settings: TrackingSection) -> None:
        self._queue: queue.Queue[Callable[[Any], None] | None] = queue.Queue(QUEUE)
        self._thread: threading.Thread | None = None
        mode = resolved_mode(settings)
        if mode != "disabled":
            work = (run_url, config, settings, mode)
            self._thread = threading.Thread(
                target=self._work, args=work, name="era-wandb", daemon=True
            )
            self._thread.start()

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Queue a row."""
        self._put(lambda run: run.log(dict(metrics), step=step))

    def images(self, step: int, panels: Sequence[Panel]) -> None:
        """Queue pictures."""
        self._put(lambda run: run.log(_wandb_images(panels), step=step))

    def close(self) -> None:
        """Send what is queued; wait for it a bounded time."""
        if self._thread is None:
            return
        self._put(None)
        self._thread.join(CLOSE_SECONDS)

    def _put(self, item: Callable[[Any], None] | None) -> None:
        if self._thread is None:
            return
        try:
            self._queue.put_nowait(item)
        except queue.Full:
            log.warning("W&B does not keep up; a row is left out there (metrics.jsonl has it)")

    def _work(
        self, run_url: str, config: dict[str, Any], settings: TrackingSection, mode: str
    ) -> None:
        try:
            run = _start(run_url, config, settings, mode)
            while (item := self._queue.get()) is not None:
                item(run)
            run.finish(quiet=True)
        except Exception as error:  # a mirror that breaks must not break the run
            log.warning("W&B stopped: %s; metrics.jsonl goes on", error)


def _start(run_url: str, config: dict[str, Any], settings: TrackingSection, mode: str) -> Any:
    os.environ.setdefault("WANDB_SILENT", "true")
    import wandb

    folder = offline_folder(run_url)
    folder.mkdir(parents=True, exist_ok=True)
    return wandb.init(
        project=settings.project,
        group=settings.group or None,
        id=run_id(run_url),
        name=storage.name_of(run_url),
        config={**config, "run_url": run_url},
        dir=str(folder),
        mode=mode,
        resume="allow" if mode == "online" else None,
        settings=wandb.Settings(init_timeout=60, disable_git=True, console="off"),
    )


def _wandb_images(panels: Sequence[Panel]) -> dict[str, Any]:
    import wandb

    return {
        f"{name}/{panel.key}": wandb.Image(picture)
        for panel in panels
        for name, picture in panel.pictures().items()
    }
