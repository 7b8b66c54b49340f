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
# KubeRay's reasons for a head that was lost, which it does not retry itself (backoffLimit).
LOST_HEAD = ("JobStatusCheckTimeoutExceeded",)
DELETION_SECONDS = 300.0  # pods save for up to 150 s when they are stopped
TRIES = 3  # RayJobs that one command starts after lost heads
QUEUE = "kueue.x-k8s.io/queue-name"
LOG = "/tmp/ray/session_latest/logs/job-driver-{job}.log"


def submit_to_kubernetes(
    rayjob: dict[str, Any],
    write: Callable[[str], None],
    stop_on_exit: bool = False,
    poll: float = POLL,
    patience: float = PATIENCE,
) -> Outcome:
    """Apply a RayJob, or find it running already, and follow it to its end.

    Args:
        rayjob: as `render` made it.
        write: receives the job's log as it comes.
        stop_on_exit: Ctrl-C or SIGTERM here deletes the RayJob, instead of leaving it alone.
        poll: seconds between two polls.
        patience: seconds without an answer, after which the job counts as lost.

    Raises:
        UserError: if kubectl is missing or refuses, or another job has that name.
    """
    job = _RayJob(rayjob["metadata"]["name"], rayjob["metadata"]["namespace"])
    _start(job, rayjob)
    try:
        outcome = _follow(job, write, poll, patience)
        for _ in range(TRIES - 1):
            if not outcome.message.startswith(LOST_HEAD):
                break
            log.warning("RayJob %s lost its head (%s)", job.name, outcome.message)
            _start(job, rayjob)
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

    def __init__(self, name: str, namespace: str) -> None:
        self.name, self.namespace = name, namespace
        found = shutil.which("kubectl")
        if not found:
            raise UserError(
                "kubectl is not installed or not on the PATH; with --dry-run the manifest is "
                "printed, for `kubectl apply -f -` elsewhere"
            )
        self.program = found

    def kubectl(self, *arguments: str, given: str = "") -> str:
        """Run kubectl in the job's namespace; its refusal is the user's error."""
        try:
            done = subprocess.run(
                [self.program, "--namespace", self.namespace, *arguments],
                input=given,
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise UserError(f"kubectl {arguments[0]}: no answer in two minutes") from None
        if done.returncode:
            reason = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
            raise UserError(f"kubectl {arguments[0]}: {reason}")
        return done.stdout

    def read(self) -> dict[str, Any] | None:
        """The RayJob as it is; None if there is none of that name."""
        text = self.kubectl("get", "rayjob", self.name, "--ignore-not-found", "-o", "json")
        return json.loads(text) if text.strip() else None

    def head(self, status: dict[str, Any]) -> tuple[str, str]:
        """Name and UID of the newest head pod of the job's cluster; empty if there is none."""
        chosen = f"ray.io/cluster={status.get('rayClusterName')},ray.io/node-type=head"
        try:
            pods = json.loads(self.kubectl("get", "pods", "-l", chosen, "-o", "json"))["items"]
        except UserError:
            return "", ""
        newest = max(pods, key=lambda p: p["metadata"].get("creationTimestamp", ""), default=None)
        return (
            (newest["metadata"]["name"], newest["metadata"].get("uid", "")) if newest else ("", "")
        )

    def log_from(self, line: int, pod: str, ray_job: str) -> str:
        """The job's log from a line on; empty while there is none, or the head can't be reached."""
        tail = ["tail", "-n", f"+{line + 1}", LOG.format(job=ray_job)]
        try:
            return self.kubectl("exec", pod, "-c", "ray-head", "--", *tail) if pod else ""
        except UserError:
            return ""


def _start(job: _RayJob, rayjob: dict[str, Any]) -> None:
    """Apply it; a finished one of that name is removed first, a running one is only followed."""
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
    if before and before.get("status", {}).get("jobDeploymentStatus") not in (*OVER, INVALID):
        if others := _differences(before, rayjob):
            raise UserError(
                f"RayJob {job.name} runs with {', '.join(others)}; delete it first, or give --name"
            )
        log.info("RayJob %s runs already; following it", job.name)
        return
    if before:
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
    shown, attempt, state, kept = 0, ("", ""), "", ""
    heard, troubles = time.monotonic(), Troubles(job.kubectl, job.name)
    while True:
        try:
            found = job.read()
            heard = time.monotonic()
        except UserError as error:
            if time.monotonic() - heard > patience:
                return Outcome(job.name, "LOST", 1, f"{error}; it may still run", kept)
            log.info("%s; trying again", error)
            time.sleep(poll)
            continue
        if found is None:
            return Outcome(job.name, "DELETED", STOPPED, "somebody deleted it", kept)
        status = found.get("status", {})
        if status.get("jobDeploymentStatus", "") != state:
            state = status.get("jobDeploymentStatus", "")
            log.info("RayJob %s: %s", job.name, state or "new")
        if ended := _not_running(job, found):
            return ended
        if state not in OVER:
            troubles.look(status)
        if state in ("Running", *OVER):
            pod, uid = job.head(status)
            life = (status.get("jobId", ""), uid)
            if pod and life != attempt:  # another cluster, or another head: another log
                shown, attempt = 0, life
            text = job.log_from(shown, pod, life[0])
            whole = text if state in OVER else text[: text.rfind("\n") + 1]
            shown += whole.count("\n")
            kept = (kept + whole)[-KEPT:]
            if whole:
                write(whole)
        if state in OVER:
            return _ended(job.name, status, kept)
        time.sleep(poll)


def _not_running(job: _RayJob, found: dict[str, Any]) -> Outcome | None:
    """The end of a job that KubeRay no longer manages or runs, though it is not over."""
    status = found.get("status", {})
    state, queue = status.get("jobDeploymentStatus"), found["metadata"].get("labels", {}).get(QUEUE)
    if state == INVALID:
        message = (
            f"{status.get('message') or 'KubeRay refuses its settings'}; its pods may still run: "
            f"`kubectl -n {job.namespace} delete rayjob {job.name}` ends them"
        )
        return Outcome(job.name, "INVALID", 2, message)
    if state == "Suspended" and not queue:
        return Outcome(
            job.name,
            "SUSPENDED",
            STOPPED,
            "somebody suspended it; delete the RayJob, then the same command continues",
        )
    return None


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
