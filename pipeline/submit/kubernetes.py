"""`era submit --kubernetes`: a RayJob is applied, or found running, and followed to its end."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

from pipeline.border import validated
from pipeline.cluster.waiting import wait_for
from pipeline.errors import UserError
from pipeline.submit.answers import Found
from pipeline.submit.command import Outcome, same_work
from pipeline.submit.kubectl import RayJob, state_of
from pipeline.submit.rayjob import OVERLAY
from pipeline.submit.watch import GONE, INVALID, OVER, follow_rayjob

log = logging.getLogger("era")
POLL = 5.0  # seconds
PATIENCE = 600.0  # seconds without an answer, after which the job counts as lost
# A head that was lost, which KubeRay does not replace itself: its reason (since 1.7), and ours.
LOST_HEAD = ("JobStatusCheckTimeoutExceeded", GONE)
# Pods save for up to 150 s when they are stopped; and an operator that was on the lost node as well
# starts elsewhere only after some six minutes.
DELETION_SECONDS = 900.0
TRIES = 3  # RayJobs that one command starts after lost heads
DISPENSABLE = ("preRunningDeadlineSeconds",)  # settings that KubeRay has since 1.6


def submit_to_kubernetes(
    rayjob: dict[str, Any],
    write: Callable[[str], None],
    stop_on_exit: bool = False,
    context: str = "",
    poll: float = POLL,
    patience: float = PATIENCE,
    finished: Callable[[], dict[str, Any] | None] = lambda: None,
) -> Outcome:
    """Apply a RayJob, or find it running already, and follow it to its end.

    Args:
        rayjob: as `render` made it.
        write: receives the job's log as it comes.
        stop_on_exit: Ctrl-C or SIGTERM here deletes the RayJob, instead of leaving it alone.
        context: kubectl's; empty = the current one.
        poll: seconds between two polls.
        patience: seconds without an answer, after which the job counts as lost.
        finished: the result of its run, where that is finished: no cluster is started for it again.

    Raises:
        UserError: if kubectl is missing or refuses, or another job has that name.
    """
    job = RayJob(rayjob["metadata"]["name"], rayjob["metadata"]["namespace"], context)
    if (ended := _ended_before(job, rayjob, finished)) is not None:
        return ended
    _start(job, rayjob, poll)
    try:
        outcome = follow_rayjob(job, write, poll, patience)
        for _ in range(TRIES - 1):
            if not outcome.message.startswith(LOST_HEAD):
                break
            log.warning(
                "RayJob %s lost its head (%s); applying it again", job.name, outcome.message
            )
            _start(job, rayjob, poll, lost=job.uid)
            outcome = follow_rayjob(job, write, poll, patience)
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
                "RayJob %s continues: the same command follows it, `%s` ends it", job.name, delete
            )
        raise


def _ended_before(
    job: RayJob, rayjob: dict[str, Any], finished: Callable[[], dict[str, Any] | None]
) -> Outcome | None:
    """The outcome of an earlier try that has finished the run; None where there is work to do."""
    before = job.read()
    if before is None or _is_going(before) or before.status.job_status != "SUCCEEDED":
        return None
    if state_of(before) not in OVER or _differences(before, rayjob):
        return None
    result = finished()
    if result is None:
        return None
    log.info("RayJob %s has ended, and its run is finished: %s", job.name, result.get("run"))
    return Outcome(job.name, before.status.job_status, 0, result=result)


def _start(job: RayJob, rayjob: dict[str, Any], poll: float, lost: str | None = None) -> None:
    """Apply it; one of that name that has ended, or is lost, is removed first.

    One that runs is only followed, also where another command has replaced the lost one already.

    Args:
        lost: uid of the RayJob whose head was lost.
    """
    before = job.read()
    if _is_going(before):
        log.info("RayJob %s of an earlier try is being deleted; waiting until it is gone", job.name)
        _until_gone(job, poll)
        before = job.read()
    gone = before is not None and before.metadata.uid == lost
    over = gone or not before or state_of(before) in (*OVER, INVALID)
    if before and not over:
        if others := _differences(before, rayjob):
            raise UserError(
                f"RayJob {job.name} runs with {', '.join(others)}; delete it first, or give --name"
            )
        log.info("RayJob %s runs already; following it", job.name)
        return
    if before:
        if not gone:
            log.info("RayJob %s of an earlier try has ended; starting it again", job.name)
        job.kubectl("delete", "rayjob", job.name, "--wait=false")
        _until_gone(job, poll)
    job.kubectl("apply", "-f", "-", given=json.dumps(_supported(job, rayjob)))
    log.info("RayJob %s applied in namespace %s", job.name, job.namespace)


def _until_gone(job: RayJob, poll: float) -> None:
    """Wait until a RayJob that is being deleted is gone, which takes KubeRay's operator."""

    def gone() -> bool:
        try:
            return not _is_going(job.read())
        except UserError as error:
            log.info("%s; trying again", error)
            return False

    try:
        wait_for(gone, f"the deletion of RayJob {job.name}", DELETION_SECONDS, pause=poll)
    except TimeoutError:
        raise UserError(
            f"RayJob {job.name}: its deletion has not ended in {DELETION_SECONDS:.0f} s; is "
            f"KubeRay's operator running? `kubectl -n {job.namespace} describe rayjob {job.name}`"
        ) from None


def _is_going(found: Found | None) -> bool:
    return found is not None and bool(found.metadata.deletion_timestamp)


def _differences(running: Found, manifest: dict[str, Any]) -> list[str]:
    """What a running RayJob has other than the command asks for."""
    found = []
    wanted = validated(Found, manifest, "the manifest")
    if not same_work(running.spec.entrypoint, wanted.spec.entrypoint):
        found.append("other arguments")
    theirs, ours = _images(running), _images(wanted)
    if theirs != ours:
        found.append(f"image {', '.join(sorted(theirs))} instead of {', '.join(sorted(ours))}")
    before, now = (one.metadata.annotations.get(OVERLAY) for one in (running, wanted))
    if before and before != now:
        found.append(f"overlay {before} instead of {now}")
    return found


def _images(rayjob: Found) -> set[str]:
    spec = rayjob.spec.ray_cluster_spec
    groups = [spec.head_group_spec, *spec.worker_group_specs]
    return {c.image for group in groups for c in group.template.spec.containers[:1]}


def _supported(job: RayJob, rayjob: dict[str, Any]) -> dict[str, Any]:
    """The RayJob without what an older KubeRay does not know, which would refuse all of it."""
    fields = job.fields()
    unknown = [name for name in DISPENSABLE if name in rayjob["spec"] and name not in fields]
    if not fields or not unknown:
        return rayjob
    log.warning("RayJob %s: this cluster's KubeRay has no %s; left out", job.name, unknown[0])
    spec = {name: value for name, value in rayjob["spec"].items() if name not in unknown}
    return {**rayjob, "spec": spec}
