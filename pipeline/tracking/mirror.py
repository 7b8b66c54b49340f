"""The mirror to W&B: a thread copies the spooled rows, so that W&B cannot stop or slow a run.

All attempts share one run id, derived from the run's URL. While a run stays online, or offline,
each row is sent once: an attempt skips the steps that earlier attempts have sent and sends those
that they have not; only complete steps are sent. A change between the two sends all rows again.

Whatever fails is tried again: a broken session with W&B is replaced by a new one that continues
after the last recorded step, and uploads of offline files are repeated at the next opportunity and
at the end. The offline files of a run in a bucket are kept in a folder of this machine that
outlives the attempt; the next attempt here uploads what is left.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import tempfile
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from pipeline import storage
from pipeline.case import Case
from pipeline.config.schema import TrackingSection
from pipeline.errors import UserError, one_line
from pipeline.tracking.panels import panels
from pipeline.tracking.segments import mirrored_step
from pipeline.tracking.spool import Spool

log = logging.getLogger("era")
PICTURES = 8  # validations whose pictures may wait; older ones are dropped
CLOSE_SECONDS = 30.0
PUBLISH_SECONDS = 60.0  # between uploads of offline files, for runs on S3
INIT_SECONDS = 30.0
RETRY_SECONDS = 1.1  # W&B names its folders by the second
CLOSING_TRIES = 2


def run_id(run_url: str) -> str:
    """W&B's id of a run: the same for every attempt."""
    return hashlib.sha256(run_url.encode()).hexdigest()[:16]


MODES = {
    "online": "online",
    "run": "online",
    "shared": "online",
    "offline": "offline",
    "dryrun": "offline",
    "disabled": "disabled",
}  # W&B's names of its modes


def resolved_mode(settings: TrackingSection) -> str:
    """online, offline or disabled.

    `auto` follows WANDB_DISABLED and WANDB_MODE, and is else online if there is an API key. An
    unknown mode never goes online.
    """
    if settings.wandb != "auto":
        return settings.wandb
    if os.environ.get("WANDB_DISABLED", "").lower() in ("true", "1", "yes", "on"):
        return "disabled"
    named = os.environ.get("WANDB_MODE", "").strip().lower()
    if named:
        return MODES.get(named, "offline")
    return "online" if os.environ.get("WANDB_API_KEY") else "offline"


def kept_folder(run_url: str) -> Path:
    """A folder of this user on this machine for the offline files of a run in a bucket.

    Raises:
        OSError: if the folder belongs to another user.
    """
    home = Path(tempfile.gettempdir()) / f"era-wandb-{os.getuid()}"
    home.mkdir(mode=0o700, exist_ok=True)
    if home.is_symlink() or home.stat().st_uid != os.getuid():
        raise PermissionError(f"{home} belongs to another user")
    return home / run_id(run_url)


class WandbMirror:
    """Copies rows and pictures to W&B in a thread of its own.

    Args:
        run_url: the run's folder.
        spool: metrics.jsonl.
        config: shown in W&B.
        settings: mode, project and group.
    """

    def __init__(
        self, run_url: str, spool: Spool, config: dict[str, Any], settings: TrackingSection
    ) -> None:
        self.run_url, self.spool, self.config, self.settings = run_url, spool, config, settings
        self.local = storage.is_local(run_url)
        self.folder = storage.local_path(run_url) if self.local else Path()
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
        """All rows up to this step have been written and may be sent."""
        self.sealed = max(self.sealed, step)
        self._wake.set()

    def images(self, step: int, cases: Sequence[Case]) -> None:
        """Queue pictures; if W&B cannot keep up, the oldest are dropped."""
        if self._thread is not None:
            self._pictures.append((step, cases))

    def close(self) -> None:
        """Send everything that is sealed; waits for a bounded time."""
        self._closing.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(CLOSE_SECONDS)
            if self._thread.is_alive():
                log.warning("W&B does not finish; metrics.jsonl has every row")

    def _work(self) -> None:
        """One session after another until everything is sent; none may break the run."""
        failures = 0
        while True:
            closing = self._closing.is_set()
            try:
                if not self.local:
                    self.folder = kept_folder(self.run_url)
                sent = max(self._session(), self._recorded_here())
                if self.mode == "online" or sent >= self._last_row():
                    break
                raise OSError("rows are missing from its files; is the disk full?")
            except Exception as error:
                self._warn("W&B failed", error)
                _end_service()  # it may still hold the run id
            failures += closing
            if failures == CLOSING_TRIES:
                log.warning("W&B stopped; metrics.jsonl has every row")
                break
            self._offset = 0  # what is recorded already is skipped
            time.sleep(RETRY_SECONDS if self._closing.is_set() else 0)
            self._closing.wait(PUBLISH_SECONDS)
        self._publish_the_rest()

    def _session(self) -> int:
        """Start W&B's run and copy rows to it until the end.

        Returns:
            The last step that earlier sessions have sent.
        """
        run, sent = self._start()
        while True:
            self._wake.wait(PUBLISH_SECONDS)
            self._wake.clear()
            closing = self._closing.is_set()  # read before the rows: none may be missed
            self._copy(run, sent)
            if closing:
                break
            self._try_to_publish(PUBLISH_SECONDS)
        run.finish()
        _end_service()  # `finish` returns before the last rows are in the offline file
        return sent

    def _start(self) -> tuple[Any, int]:
        """Start W&B's run; returns it and the last step that it already has."""
        if self.mode == "online":
            try:
                run = self._init("online")
                return run, int(run.starting_step) - 1
            except Exception as error:
                self._warn("W&B does not answer; continuing offline", error)
                _end_service()  # it still holds the run id for the start that failed
                self.mode = "offline"
        sent = self._recorded()
        return self._init("offline"), sent

    def _recorded(self) -> int:
        """The last step in offline files; of a run in a bucket, files of this machine count too."""
        here = self._recorded_here()
        if self.local:
            return here
        recorded = mirrored_step(self.run_url, run_id(self.run_url))
        if here <= recorded and not self._published:
            shutil.rmtree(self.folder, ignore_errors=True)  # an attempt elsewhere went further
        return max(recorded, here)

    def _recorded_here(self) -> int:
        return mirrored_step(str(self.folder), run_id(self.run_url))

    def _last_row(self) -> int:
        rows = (int(row["step"]) for _, row in self.spool.lines(0))
        return max((step for step in rows if step <= self.sealed), default=-1)

    def _init(self, mode: Literal["online", "offline"]) -> Any:
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
                silent=True,
                init_timeout=INIT_SECONDS,
                disable_git=True,
                console="off",
                x_disable_meta=True,  # host, user and command line are private
                x_save_requirements=False,
            ),
        )
        run.define_metric("global_step", hidden=True)
        run.define_metric("*", step_metric="global_step")
        return run

    def _copy(self, run: Any, sent: int) -> None:
        """Send the sealed rows and the pictures between them, ordered by step."""
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

    def _try_to_publish(self, every: float) -> bool:
        """Upload new offline files, now and then; a failure is repeated next time."""
        waited = time.monotonic() - self._published_at
        if self.local or self.mode != "offline" or waited < every:
            return True
        try:
            self._publish()
            return True
        except (UserError, OSError) as error:
            self._warn("W&B's files cannot be uploaded yet", error)
            return False
        finally:
            self._published_at = time.monotonic()

    def _publish(self) -> None:
        """Upload the offline files of a run in a bucket that have changed to `<run>/wandb`."""
        for path in sorted((self.folder / "wandb").glob("offline-run-*/**/*")):
            state = (path.stat().st_size, path.stat().st_mtime_ns)
            name = path.relative_to(self.folder).as_posix()
            if path.is_file() and "/logs/" not in name and self._published.get(name) != state:
                storage.upload(path, storage.join(self.run_url, name))
                self._published[name] = state

    def _publish_the_rest(self) -> None:
        if self.local or self.mode != "offline":
            return
        if self._try_to_publish(0.0) or self._try_to_publish(0.0):
            shutil.rmtree(self.folder, ignore_errors=True)
        else:
            log.warning("W&B's files stay in %s; the next attempt here uploads them", self.folder)

    def _warn(self, what: str, error: Exception) -> None:
        reason = one_line(str(error))[:200]
        log.warning("%s (%s: %s); metrics.jsonl is complete", what, type(error).__name__, reason)


def _end_service() -> None:
    """End W&B's service process and wait for it; a later start gets a new one."""
    import wandb

    with suppress(Exception):  # it may have ended already
        wandb.teardown()


def _wandb_images(cases: Sequence[Case]) -> dict[str, Any]:
    import wandb

    return {
        f"{name}/{case.key}": wandb.Image(picture)
        for case in cases
        for name, picture in panels(case).items()
    }
