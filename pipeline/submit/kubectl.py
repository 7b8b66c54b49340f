"""A RayJob through `kubectl`: applied, followed to its end, with the job's own exit code.

Everything is asked for again and again, so that no lost connection matters: the state, and the log
from the first line that was not shown yet.
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

log = logging.getLogger("era")
POLL = 5.0  # seconds
PATIENCE = 600.0  # seconds without an answer, after which the job counts as lost
OVER = ("Complete", "Failed")
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
        poll: seconds between two looks.
        patience: seconds without an answer, after which the job counts as lost.

    Raises:
        UserError: if kubectl is missing or refuses, or another job has that name.
    """
    job = _RayJob(rayjob["metadata"]["name"], rayjob["metadata"]["namespace"])
    _start(job, rayjob)
    try:
        return _follow(job, write, poll, patience)
    except Exception:
        raise
    except BaseException:  # Ctrl-C or SIGTERM of this process
        delete = f"kubectl -n {job.namespace} delete rayjob {job.name}"
        if stop_on_exit:
            job.kubectl("delete", "rayjob", job.name, "--wait=false")
            log.warning("RayJob %s is being deleted; the same command goes on later", job.name)
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

    def log_from(self, line: int, status: dict[str, Any]) -> str:
        """The job's log from a line on; empty while there is none, or the head can't be reached."""
        cluster, ray_job = status.get("rayClusterName"), status.get("jobId")
        chosen = f"ray.io/cluster={cluster},ray.io/node-type=head"
        try:
            pod = self.kubectl("get", "pods", "-l", chosen, "-o", "name").strip()
            file = LOG.format(job=ray_job)
            tail = ["tail", "-n", f"+{line + 1}", file]
            return self.kubectl("exec", pod, "-c", "ray-head", "--", *tail) if pod else ""
        except UserError:
            return ""


def _start(job: _RayJob, rayjob: dict[str, Any]) -> None:
    """Apply it; a finished one of that name is removed first, a running one is only followed."""
    before = job.read()
    if before and before.get("status", {}).get("jobDeploymentStatus") not in OVER:
        if before["spec"].get("entrypoint") != rayjob["spec"]["entrypoint"]:
            raise UserError(
                f"RayJob {job.name} runs with other arguments; delete it first, or give --name"
            )
        log.info("RayJob %s runs already; following it", job.name)
        return
    if before:
        log.info("RayJob %s of an earlier try has ended; starting it anew", job.name)
        job.kubectl("delete", "rayjob", job.name, "--wait=true", "--timeout=110s")
    job.kubectl("apply", "-f", "-", given=json.dumps(rayjob))
    log.info("RayJob %s applied in namespace %s", job.name, job.namespace)


def _follow(job: _RayJob, write: Callable[[str], None], poll: float, patience: float) -> Outcome:
    shown, attempt, state, kept = 0, "", "", ""
    heard = time.monotonic()
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
        if status.get("jobId", "") != attempt:  # KubeRay's retry: another cluster, another log
            shown, attempt = 0, status.get("jobId", "")
        if state in ("Running", *OVER):
            text = job.log_from(shown, status)
            whole = text if state in OVER else text[: text.rfind("\n") + 1]
            shown += whole.count("\n")
            kept = (kept + whole)[-KEPT:]
            if whole:
                write(whole)
        if state in OVER:
            return _ended(job.name, status, kept)
        time.sleep(poll)


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
