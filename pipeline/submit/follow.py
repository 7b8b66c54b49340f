"""Follows a Ray job: each character of its log once, even if connections are lost."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

from pipeline.submit.command import STOPPED, Outcome

log = logging.getLogger("era")
PATIENCE = 600.0  # seconds without an answer from the cluster, after which a job counts as lost
QUIET = 60.0  # seconds without a line, after which the connection is checked
LONGEST_QUIET = 600.0
PAUSE = 2.0  # seconds between attempts to connect
KEPT = 200_000  # characters of the log that the outcome keeps


def follow(client: Any, job: str, write: Callable[[str], None]) -> Outcome:
    """Write the job's log until the job ends; return how it ended.

    Ray's stream starts over at each connection: characters already written are skipped.
    """
    return asyncio.run(_Follower(client, job, write).run())


class _Follower:
    def __init__(self, client: Any, job: str, write: Callable[[str], None]) -> None:
        self.client, self.job, self.write = client, job, write
        self.shown = 0  # characters of the log written
        self.kept = ""
        self.heard = time.monotonic()
        self.quiet = QUIET

    async def run(self) -> Outcome:
        while True:
            reason = await self._stream()
            try:
                info = self.client.get_job_info(self.job)
            except (RuntimeError, OSError) as error:
                if "does not exist" in str(error):
                    return self._lost("the cluster has been restarted and no longer has it")
                reason = reason or type(error).__name__
            else:
                self.heard = time.monotonic()
                if info.status.is_terminal():
                    self._rest()
                    return self._ended(info)
            if time.monotonic() - self.heard > PATIENCE:
                return self._lost(f"no answer for {PATIENCE:.0f} s; it may still run")
            if reason:
                log.info("job %s: connection lost (%s); trying again", self.job, reason)
            await asyncio.sleep(PAUSE)

    async def _stream(self) -> str:
        """Write what one connection delivers; return why it broke, or nothing."""
        import aiohttp

        position = 0
        stream = self.client.tail_job_logs(self.job)
        try:
            while True:
                text = await asyncio.wait_for(anext(stream), self.quiet)
                self.heard, self.quiet = time.monotonic(), QUIET
                self._pass_on(text[max(0, self.shown - position) :])
                position += len(text)
        except StopAsyncIteration:
            return ""
        except TimeoutError:  # a long step, or a dead connection: ask the server
            self.quiet = min(2 * self.quiet, LONGEST_QUIET)
            return ""
        except (RuntimeError, OSError, aiohttp.ClientError) as error:
            return type(error).__name__
        finally:
            await stream.aclose()

    def _rest(self) -> None:
        """Write the part of a finished job's log that the last connection did not deliver."""
        try:
            self._pass_on(self.client.get_job_logs(self.job)[self.shown :])
        except (RuntimeError, OSError):
            log.warning("job %s: the end of its log can't be reached", self.job)

    def _pass_on(self, text: str) -> None:
        if text:
            self.write(text)
            self.shown += len(text)
            self.kept = (self.kept + text)[-KEPT:]

    def _ended(self, info: Any) -> Outcome:
        state = str(info.status.value)
        if state == "SUCCEEDED":
            return Outcome(self.job, state, 0, log=self.kept)
        if state == "STOPPED":
            return Outcome(self.job, state, STOPPED, "somebody stopped it", self.kept)
        message = (info.message or "").partition(", last available logs")[0]
        return Outcome(self.job, state, exit_code(info.driver_exit_code), message, self.kept)

    def _lost(self, message: str) -> Outcome:
        return Outcome(self.job, "LOST", 1, message, self.kept)


def exit_code(of_driver: int | None) -> int:
    """A driver's exit code as a shell reports it: 128 + n for signal n; 1 if it never started."""
    if of_driver is None:
        return 1
    return 128 - of_driver if of_driver < 0 else of_driver
