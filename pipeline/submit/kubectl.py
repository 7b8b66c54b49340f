"""A RayJob through `kubectl`: applied, followed to its end, with the job's own exit code.

The state and the log, from the first line that was not shown yet, are polled, so that a lost
connection does not matter.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pipeline.errors import UserError
from pipeline.submit.command import STOPPED, Outcome
from pipeline.submit.follow import KEPT, exit_code
from pipeline.submit.rayjob import OVERLAY
from pipeline.submit.troubles import Troubles

log = logging.getLogger("era")
POLL = 5.0  # seconds
PATIENCE = 600.0  # seconds without an answer, after which the job counts as lost
OVER = ("Complete", "Failed")
INVALID = "ValidationFailed"
# A head that was lost, which KubeRay does not replace itself: its reason (since 1.7), and ours.
GONE = "its head does not answer"
LOST_HEAD = ("JobStatusCheckTimeoutExceeded", GONE)
SILENT_SECONDS = 30.0  # without an answer of the head, after which it is said
GONE_SECONDS = 60.0  # without one, after which a head that Kubernetes deletes counts as lost
DELETION_SECONDS = 300.0  # pods save for up to 150 s when they are stopped
EXEC = 15.0  # seconds for the log; the network of a lost node answers nothing
TRIES = 3  # RayJobs that one command starts after lost heads
QUEUE = "kueue.x-k8s.io/queue-name"
LOG = "/tmp/ray/session_latest/logs/job-driver-{job}.log"


def submit_to_kubernetes(
    rayjob: dict[str, Any],
    write: Callable[[str], None],
    stop_on_exit: bool = False,
    context: str = "",
    poll: float = POLL,
    patience: float = PATIENCE,
) -> Outcome:
    """Apply a RayJob, or find it running already, and follow it to its end.

    Args:
        rayjob: as `render` made it.
        write: receives the job's log as it comes.
        stop_on_exit: Ctrl-C or SIGTERM here deletes the RayJob, instead of leaving it alone.
        context: kubectl's; empty = the current one.
        poll: seconds between two polls.
        patience: seconds without an answer, after which the job counts as lost.

    Raises:
        UserError: if kubectl is missing or refuses, or another job has that name.
    """
    job = _RayJob(rayjob["metadata"]["name"], rayjob["metadata"]["namespace"], context)
    _start(job, rayjob)
    try:
        outcome = _follow(job, write, poll, patience)
        for _ in range(TRIES - 1):
            if not outcome.message.startswith(LOST_HEAD):
                break
            log.warning(
                "RayJob %s lost its head (%s); applying it again", job.name, outcome.message
            )
            _start(job, rayjob, lost=True)
            outcome = _follow(job, write, poll, patience)
        return outcome
    except Exception:
        raise
    except BaseException:  # Ctrl-C or SIGTERM of this process
        delete = f"kubectl -n {job.namespace} delete rayjob {job.name}"
        if stop_on_exit:
            job.kubectl("delete", "rayjob", job.name, "--wait=false")
            log.warning("RayJob %s is being deleted; the same command continues later", job.name)
        else:
            log.warning(
                "RayJob %s goes on: the same command follows it, `%s` ends it", job.name, delete
            )
        raise


class _RayJob:
    """One RayJob in the cluster that kubectl's context names."""

    def __init__(self, name: str, namespace: str, context: str = "") -> None:
        self.name, self.namespace, self.context = name, namespace, context
        found = shutil.which("kubectl")
        if not found:
            raise UserError(
                "kubectl is not installed or not on the PATH; with --dry-run the manifest is "
                "printed, for `kubectl apply -f -` elsewhere"
            )
        self.program = found

    def kubectl(self, *arguments: str, given: str = "", seconds: float = 120.0) -> str:
        """Run kubectl in the job's namespace; its refusal is the user's error."""
        chosen = ["--context", self.context] if self.context else []
        try:
            done = subprocess.run(
                [self.program, "--namespace", self.namespace, *chosen, *arguments],
                input=given,
                capture_output=True,
                text=True,
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise UserError(f"kubectl {arguments[0]}: no answer in {seconds:.0f} s") from None
        if done.returncode:
            reason = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
            raise UserError(f"kubectl {arguments[0]}: {reason}")
        return done.stdout

    def read(self) -> dict[str, Any] | None:
        """The RayJob as it is; None if there is none of that name."""
        text = self.kubectl("get", "rayjob", self.name, "--ignore-not-found", "-o", "json")
        return json.loads(text) if text.strip() else None

    def head(self, status: dict[str, Any]) -> _Head | None:
        """The newest head pod of the job's cluster; None if there is none."""
        chosen = f"ray.io/cluster={status.get('rayClusterName')},ray.io/node-type=head"
        try:
            pods = json.loads(self.kubectl("get", "pods", "-l", chosen, "-o", "json"))["items"]
        except UserError:
            return None
        newest = max(pods, key=lambda p: p["metadata"].get("creationTimestamp", ""), default=None)
        if newest is None:
            return None
        meta = newest["metadata"]
        return _Head(
            name=meta["name"],
            uid=meta.get("uid", ""),
            node=newest.get("spec", {}).get("nodeName", ""),
            deleted="deletionTimestamp" in meta,
        )

    def log_from(self, line: int, head: _Head, ray_job: str) -> str | None:
        """The job's log from a line on; None while there is none, or the head can't be reached."""
        tail = ["tail", "-n", f"+{line + 1}", LOG.format(job=ray_job)]
        try:
            return self.kubectl("exec", head.name, "-c", "ray-head", "--", *tail, seconds=EXEC)
        except UserError:
            return None


@dataclass(frozen=True)
class _Head:
    """A job's head pod."""

    name: str
    uid: str
    node: str
    deleted: bool  # or being deleted


def _start(job: _RayJob, rayjob: dict[str, Any], lost: bool = False) -> None:
    """Apply it; one of that name that has ended, or is lost, is removed first.

    One that runs is only followed.
    """
    before = job.read()
    if before and before["metadata"].get("deletionTimestamp"):
        log.info("RayJob %s of an earlier try is being deleted; waiting until it is gone", job.name)
        deadline = time.monotonic() + DELETION_SECONDS
        while before and before["metadata"].get("deletionTimestamp"):
            if time.monotonic() > deadline:
                raise UserError(
                    f"RayJob {job.name}: its deletion has not ended in {DELETION_SECONDS:.0f} s; "
                    f"see `kubectl -n {job.namespace} describe rayjob {job.name}`"
                )
            time.sleep(1)
            before = job.read()
    over = lost or not before or _state(before) in (*OVER, INVALID)
    if before and not over:
        if others := _differences(before, rayjob):
            raise UserError(
                f"RayJob {job.name} runs with {', '.join(others)}; delete it first, or give --name"
            )
        log.info("RayJob %s runs already; following it", job.name)
        return
    if before:
        if not lost:
            log.info("RayJob %s of an earlier try has ended; starting it again", job.name)
        job.kubectl("delete", "rayjob", job.name, "--wait=true", "--timeout=110s")
    job.kubectl("apply", "-f", "-", given=json.dumps(rayjob))
    log.info("RayJob %s applied in namespace %s", job.name, job.namespace)


def _differences(running: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """What a running RayJob has other than the command asks for."""
    found = []
    if running["spec"].get("entrypoint") != wanted["spec"]["entrypoint"]:
        found.append("other arguments")
    theirs, ours = _images(running), _images(wanted)
    if theirs != ours:
        found.append(f"image {', '.join(sorted(theirs))} instead of {', '.join(sorted(ours))}")
    before, now = (one["metadata"].get("annotations", {}).get(OVERLAY) for one in (running, wanted))
    if before and before != now:
        found.append(f"overlay {before} instead of {now}")
    return found


def _images(rayjob: dict[str, Any]) -> set[str]:
    spec = rayjob["spec"].get("rayClusterSpec", {})
    groups = [spec.get("headGroupSpec", {}), *spec.get("workerGroupSpecs", [])]
    return {
        container.get("image", "")
        for group in groups
        for container in group.get("template", {}).get("spec", {}).get("containers", [])[:1]
    }


def _follow(job: _RayJob, write: Callable[[str], None], poll: float, patience: float) -> Outcome:
    state, heard = "", time.monotonic()
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
        status = found.get("status", {})
        if _state(found) != state:
            state = _state(found)
            log.info("RayJob %s: %s", job.name, _described(job, found) or "new")
        if state == INVALID:
            return _invalid(job, status)
        if state not in OVER:
            troubles.look(found)
        if state in ("Running", *OVER):
            lost = tail.read(status, over=state in OVER)
            if lost and state not in OVER:
                return Outcome(job.name, "LOST", 1, lost, tail.kept)
        if state in OVER:
            return _ended(job.name, status, tail.kept)
        time.sleep(poll)


class _Tail:
    """A job's log as it grows, through new heads; and whether its head still answers."""

    def __init__(self, job: _RayJob, write: Callable[[str], None]) -> None:
        self.job, self.write = job, write
        self.kept = ""
        self.shown, self.life = 0, ("", "")  # lines of the log of one driver on one head
        self.answered = self.said = time.monotonic()

    def read(self, status: dict[str, Any], over: bool) -> str:
        """Pass on what is new; returns why the head counts as lost, if it does."""
        head = self.job.head(status)
        if head is None:
            return ""
        life = (status.get("jobId", ""), head.uid)
        if life != self.life:  # another cluster, or another head: another log
            self.shown, self.life, self.answered = 0, life, time.monotonic()
        text = self.job.log_from(self.shown, head, life[0])
        if text is None:
            return self._silent(head)
        self.answered = time.monotonic()
        whole = text if over else text[: text.rfind("\n") + 1]
        self.shown += whole.count("\n")
        self.kept = (self.kept + whole)[-KEPT:]
        if whole:
            self.write(whole)
        return ""

    def _silent(self, head: _Head) -> str:
        seconds = time.monotonic() - self.answered
        if head.deleted and seconds > GONE_SECONDS:
            return f"{GONE}, and Kubernetes deletes it; node {head.node}"
        if self.shown and seconds > SILENT_SECONDS < time.monotonic() - self.said:
            self.said = time.monotonic()
            log.warning(
                "RayJob %s: its head %s on node %s does not answer for %.0f s; is the node lost?",
                self.job.name,
                head.name,
                head.node,
                seconds,
            )
        return ""


def _state(rayjob: dict[str, Any]) -> str:
    return str(rayjob.get("status", {}).get("jobDeploymentStatus", ""))


def _described(job: _RayJob, rayjob: dict[str, Any]) -> str:
    """A RayJob's state, and what it waits for where that is a person."""
    state = _state(rayjob)
    if state == "Suspended" and not rayjob["metadata"].get("labels", {}).get(QUEUE):
        resume = '{"spec":{"suspend":false}}'
        patch = f"kubectl -n {job.namespace} patch rayjob {job.name} --type=merge -p '{resume}'"
        return f"{state}; its pods save and go; it goes on after `{patch}`"
    return state


def _invalid(job: _RayJob, status: dict[str, Any]) -> Outcome:
    message = (
        f"{status.get('message') or 'KubeRay refuses its settings'}; its pods may still run: "
        f"`kubectl -n {job.namespace} delete rayjob {job.name}` ends them"
    )
    return Outcome(job.name, "INVALID", 2, message)


def _ended(name: str, status: dict[str, Any], kept: str) -> Outcome:
    state = status.get("jobStatus") or "FAILED"
    if status["jobDeploymentStatus"] == "Complete" and state == "SUCCEEDED":
        return Outcome(name, state, 0, log=kept)
    if state == "STOPPED":
        return Outcome(name, state, STOPPED, "somebody stopped it", kept)
    text = status.get("message", "")
    code = re.search(r"failed with exit code (-?\d+)", text)  # Ray's words (job_supervisor.py)
    message = f"{status.get('reason', '')}: {text.partition(', last available logs')[0]}"
    return Outcome(name, "FAILED", exit_code(int(code[1]) if code else None), message, kept)
