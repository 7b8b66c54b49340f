"""W&B, at arm's length: a thread copies the spooled rows, so that it never stops or slows a run.

One run id for all attempts, derived from the run's URL. A row goes out once: an attempt skips the
steps that earlier ones have sent, sends those that they have not, and only whole steps count.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pipeline import storage
from pipeline.case import Case
from pipeline.config.schema import TrackingSection
from pipeline.tracking.panels import panels
from pipeline.tracking.segments import mirrored_step
from pipeline.tracking.spool import Spool

log = logging.getLogger("era")
PICTURES = 8  # validations whose pictures may wait; older ones are left out of the mirror
CLOSE_SECONDS = 30.0
PUBLISH_SECONDS = 60.0  # between uploads of offline files, for runs on S3
INIT_SECONDS = 30.0


def run_id(run_url: str) -> str:
    """W&B's id of a run: the same for every attempt."""
    return hashlib.sha256(run_url.encode()).hexdigest()[:16]


def resolved_mode(settings: TrackingSection) -> str:
    """online, offline or disabled. `auto` is WANDB_MODE, else online where there is a key."""
    if settings.wandb != "auto":
        return settings.wandb
    named = os.environ.get("WANDB_MODE", "")
    if named in ("online", "offline", "disabled"):
        return named
    return "online" if os.environ.get("WANDB_API_KEY") else "offline"


class WandbMirror:
    """Copies rows and pictures to W&B from a thread of its own.

    Args:
        run_url: the run's folder.
        spool: metrics.jsonl.
        folder: a local folder, where W&B's files of a run on S3 lie before they are uploaded.
        config: shown in W&B.
        settings: mode, project and group.
    """

    def __init__(
        self,
        run_url: str,
        spool: Spool,
        folder: Path,
        config: dict[str, Any],
        settings: TrackingSection,
    ) -> None:
        self.run_url, self.spool, self.config, self.settings = run_url, spool, config, settings
        local = storage.is_local(run_url)
        self.folder = storage.local_path(run_url) if local else folder
        self.sealed = -1  # rows up to this step are complete
        self._pictures: deque[tuple[int, Sequence[Case]]] = deque(maxlen=PICTURES)
        self._wake, self._closing = threading.Event(), threading.Event()
        self._offset = 0
        self._published: dict[str, tuple[int, int]] = {}
        self._published_at = time.monotonic()
        self._thread: threading.Thread | None = None
        self.mode = resolved_mode(settings)
        if self.mode != "disabled":
            self._thread = threading.Thread(target=self._work, name="era-wandb", daemon=True)
            self._thread.start()

    def seal(self, step: int) -> None:
        """No more rows of this step or earlier ones will come: they may go out."""
        self.sealed = max(self.sealed, step)
        self._wake.set()

    def images(self, step: int, cases: Sequence[Case]) -> None:
        """Queue pictures; where W&B does not keep up the oldest are left out."""
        if self._thread is not None:
            self._pictures.append((step, cases))

    def close(self) -> None:
        """Let what is sealed go out; wait for it a bounded time."""
        self._closing.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(CLOSE_SECONDS)
            if self._thread.is_alive():
                log.warning("W&B does not finish; what it lacks is in metrics.jsonl")

    def _work(self) -> None:
        try:
            self._mirror()
        except Exception as error:  # a mirror that breaks must not break the run
            reason = " ".join(str(error).split())[:200]
            log.warning("W&B stopped (%s: %s); metrics.jsonl goes on", type(error).__name__, reason)

    def _mirror(self) -> None:
        run, sent = self._start()
        while True:
            self._wake.wait(PUBLISH_SECONDS)
            self._wake.clear()
            closing = self._closing.is_set()  # read before the rows: none may be missed
            self._copy(run, sent)
            if closing:
                break
            self._publish(PUBLISH_SECONDS)
        run.finish()
        _end_service()  # `finish` returns before the last rows are in the offline file
        self._publish(0.0)

    def _start(self) -> tuple[Any, int]:
        """Start W&B's run; return it, and the last step that it has already."""
        if self.mode == "online":
            try:
                run = self._init("online")
                return run, int(run.starting_step) - 1
            except Exception as error:
                log.warning("W&B does not answer (%s); going on offline", type(error).__name__)
                _end_service()  # it still holds the run id for the start that failed
                self.mode = "offline"
        sent = mirrored_step(self.run_url, run_id(self.run_url))
        return self._init("offline"), sent

    def _init(self, mode: Literal["online", "offline"]) -> Any:
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        self.folder.mkdir(parents=True, exist_ok=True)
        run = wandb.init(
            project=self.settings.project,
            group=self.settings.group or None,
            id=run_id(self.run_url),
            name=storage.name_of(self.run_url),
            config={**self.config, "run_url": self.run_url},
            dir=str(self.folder),
            mode=mode,
            resume="allow",
            settings=wandb.Settings(
                init_timeout=INIT_SECONDS,
                disable_git=True,
                console="off",
                x_disable_meta=True,  # host, user and command line are nobody's business
                x_save_requirements=False,
            ),
        )
        run.define_metric("global_step", hidden=True)
        run.define_metric("*", step_metric="global_step")
        return run

    def _copy(self, run: Any, sent: int) -> None:
        """Send the sealed rows and the pictures between them, in order of steps."""
        for after, row in self.spool.lines(self._offset):
            step = int(row["step"])
            if step > self.sealed:
                break
            self._send_pictures(run, step - 1, sent)
            if step > sent:
                numbers = {k: v for k, v in row.items() if k != "step" and v is not None}
                run.log({**numbers, "global_step": step}, step=step)
            self._offset = after
        self._send_pictures(run, self.sealed, sent)

    def _send_pictures(self, run: Any, last: int, sent: int) -> None:
        while self._pictures and self._pictures[0][0] <= last:
            step, cases = self._pictures.popleft()
            if step > sent:
                run.log({**_wandb_images(cases), "global_step": step}, step=step)

    def _publish(self, every: float) -> None:
        """Upload new offline files of a run on S3 to `<run>/wandb`, now and then."""
        waited = time.monotonic() - self._published_at
        if storage.is_local(self.run_url) or self.mode != "offline" or waited < every:
            return
        for path in sorted((self.folder / "wandb").glob("offline-run-*/**/*")):
            state = (path.stat().st_size, path.stat().st_mtime_ns)
            name = path.relative_to(self.folder).as_posix()
            if path.is_file() and "/logs/" not in name and self._published.get(name) != state:
                storage.upload(path, storage.join(self.run_url, name))
                self._published[name] = state
        self._published_at = time.monotonic()


def _end_service() -> None:
    """End W&B's service process and wait for it; a later start gets a new one."""
    import wandb

    wandb.teardown()


def _wandb_images(cases: Sequence[Case]) -> dict[str, Any]:
    import wandb

    return {
        f"{name}/{case.key}": wandb.Image(picture)
        for case in cases
        for name, picture in panels(case).items()
    }
