"""Follows a RayJob to its end: its states, its log through new heads, its own exit code.

The state and the log, from the first line that was not shown yet, are polled, so that a lost
connection does not matter.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable

from pipeline.errors import UserError
from pipeline.submit.answers import Found, JobStatus
from pipeline.submit.command import STOPPED, Outcome
from pipeline.submit.follow import KEPT, exit_code
from pipeline.submit.kubectl import Head, RayJob, state_of
from pipeline.submit.troubles import Troubles

log = logging.getLogger("era")
OVER = ("Complete", "Failed")
INVALID = "ValidationFailed"
GONE = "its head does not answer"  # our reason for a head that was lost
SILENT_SECONDS = 30.0  # without an answer of the head, after which it is said
UNSEEN_SECONDS = 60.0  # without a state, after which it is said that no operator has taken it up
GONE_SECONDS = 60.0  # without one, after which a head that Kubernetes deletes counts as lost
DRAIN_SECONDS = 180.0  # the same, if it never answered: it may still save in its grace
QUEUE = "kueue.x-k8s.io/queue-name"


def follow_rayjob(
    job: RayJob, write: Callable[[str], None], poll: float, patience: float
) -> Outcome:
    """Pass on the job's log until it has ended, is gone, or counts as lost; return how."""
    state, heard = None, time.monotonic()
    unseen: _Unseen | None = _Unseen(job, patience)  # until the job has its first state
    troubles, tail = Troubles(job.kubectl, job.name), _Tail(job, write)
    while True:
        try:
            found = job.read()
            heard = time.monotonic()
        except UserError as error:
            if time.monotonic() - heard > patience:
                return Outcome(job.name, "LOST", 1, f"{error}; it may still run", tail.kept)
            log.info("%s; trying again", error)
            time.sleep(poll)
            continue
        if found is None:
            return Outcome(job.name, "DELETED", STOPPED, "somebody deleted it", tail.kept)
        status, job.uid = found.status, found.metadata.uid
        if state_of(found) != state:
            state = state_of(found)
            log.info("RayJob %s: %s", job.name, _described(job, found) or "new")
        if state == INVALID:
            return _invalid(job, status)
        if state or found.metadata.labels.get(QUEUE):
            unseen = None
        if unseen and (why := unseen.look()):
            return Outcome(job.name, "LOST", 1, why, tail.kept)
        if state not in OVER:
            troubles.look(found)
        if state in ("Running", *OVER):
            lost = tail.read(status, over=state in OVER)
            if lost and state not in OVER:
                return Outcome(job.name, "LOST", 1, lost, tail.kept)
        if state in OVER:
            return _ended(job.name, status, tail.kept)
        time.sleep(poll)


class _Unseen:
    """How long no operator has taken a job up: it says so, again and again, and gives up."""

    def __init__(self, job: RayJob, patience: float) -> None:
        self.job, self.patience = job, patience
        self.begun = self.said = time.monotonic()

    def look(self) -> str:
        """Returns why the job counts as lost, if it does."""
        seconds = time.monotonic() - self.begun
        cause = "is KubeRay's operator running, and does it watch namespace"
        text = f"no operator has taken it up for {seconds:.0f} s; {cause} {self.job.namespace}?"
        if seconds > self.patience:
            delete = f"kubectl -n {self.job.namespace} delete rayjob {self.job.name}"
            return f"{text} It may still start; `{delete}` prevents that"
        if seconds > UNSEEN_SECONDS < time.monotonic() - self.said:
            self.said = time.monotonic()
            log.warning("RayJob %s: %s", self.job.name, text)
        return ""


class _Tail:
    """A job's log as it grows, through new heads; and whether its head still answers."""

    def __init__(self, job: RayJob, write: Callable[[str], None]) -> None:
        self.job, self.write = job, write
        self.kept = ""
        self.shown, self.life = 0, ("", "")  # lines of the log of one driver on one head
        self.answered = self.said = time.monotonic()
        self.heard, self.going = False, 0.0  # whether this head has answered; since when it goes

    def read(self, status: JobStatus, over: bool) -> str:
        """Pass on what is new; returns why the head counts as lost, if it does."""
        head = self.job.head(status)
        if head is None:
            return ""
        life = (status.job_id, head.uid)
        if life != self.life:  # another cluster, or another head: another log
            self.shown, self.life, self.answered = 0, life, time.monotonic()
            self.heard, self.going = False, 0.0
        if head.deleted and not self.going:
            self.going = time.monotonic()
        text = self.job.log_from(self.shown, head, life[0])
        if text is None:
            return self._silent(head)
        self.answered, self.heard = time.monotonic(), True
        whole = text if over else text[: text.rfind("\n") + 1]
        self.shown += whole.count("\n")
        self.kept = (self.kept + whole)[-KEPT:]
        if whole:
            self.write(whole)
        return ""

    def _silent(self, head: Head) -> str:
        now = time.monotonic()
        seconds = now - self.answered
        patience = GONE_SECONDS if self.heard else DRAIN_SECONDS
        if head.deleted and now - max(self.answered, self.going) > patience:
            return f"{GONE}, and Kubernetes deletes it; node {head.node}"
        if seconds > SILENT_SECONDS < now - self.said:
            self.said = now
            log.warning(
                "RayJob %s: its head %s on node %s does not answer for %.0f s; %s",
                self.job.name,
                head.name,
                head.node,
                seconds,
                "is the node lost?" if self.heard else f"its log is not shown ({self.job.refusal})",
            )
        return ""


def _described(job: RayJob, rayjob: Found) -> str:
    """A RayJob's state, and what it waits for where that is a person."""
    state = state_of(rayjob)
    if state == "Suspended" and (queue := rayjob.metadata.labels.get(QUEUE)):
        look = f"kubectl -n {job.namespace} get workloads"
        return f"{state}; it waits for its queue {queue}, `{look}` says for what"
    if state == "Suspended":
        resume = '{"spec":{"suspend":false}}'
        patch = f"kubectl -n {job.namespace} patch rayjob {job.name} --type=merge -p '{resume}'"
        return f"{state}; its pods save and end; it continues after `{patch}`"
    return state


def _invalid(job: RayJob, status: JobStatus) -> Outcome:
    message = (
        f"{status.message or 'KubeRay refuses its settings'}; its pods may still run: "
        f"`kubectl -n {job.namespace} delete rayjob {job.name}` ends them"
    )
    return Outcome(job.name, "INVALID", 2, message)


def _ended(name: str, status: JobStatus, kept: str) -> Outcome:
    state = status.job_status or "FAILED"
    if status.job_deployment_status == "Complete" and state == "SUCCEEDED":
        return Outcome(name, state, 0, log=kept)
    if state == "STOPPED":
        return Outcome(name, state, STOPPED, "somebody stopped it", kept)
    text = status.message
    code = re.search(r"failed with exit code (-?\d+)", text)  # Ray's words (job_supervisor.py)
    message = f"{status.reason}: {text.partition(', last available logs')[0]}"
    return Outcome(name, "FAILED", exit_code(int(code[1]) if code else None), message, kept)
