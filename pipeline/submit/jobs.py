"""Submits a command to a Ray cluster's job server and follows it until it ends.

The job belongs to the cluster: a lost connection, or the end of this process, does not end it. The
same command, run again, finds the job and continues to follow it.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.cluster import job_client, no_address, wait_for
from pipeline.errors import UserError
from pipeline.submit.command import Command, Outcome, refuse_places, same_work
from pipeline.submit.follow import PAUSE, follow
from pipeline.submit.package import pack
from pipeline.train.driver import git_revision

log = logging.getLogger("era")
STOP_SECONDS = (
    90  # between a stopped job's SIGTERM and SIGKILL, to upload a checkpoint; Ray's default is 3
)
SENDS = 3  # attempts to submit a job over a connection that breaks
TARGET = "era-target"  # key of the job's metadata: the URL of what it makes


@dataclass(frozen=True)
class RayOptions:
    """Where a job goes and what travels with it.

    Attributes:
        address: of the job server, http://...
        working_dir: a folder whose files the job sees, and whose code comes before the image's.
        env: names of environment variables that travel with their values.
        stop_on_exit: Ctrl-C or SIGTERM here stops the job, instead of leaving it alone.
        as_json: the job's own summary is JSON, as its last line.
    """

    address: str
    working_dir: str = ""
    env: Sequence[str] = ()
    stop_on_exit: bool = False
    as_json: bool = False


def submit_to_ray(command: Command, options: RayOptions, write: Callable[[str], None]) -> Outcome:
    """Send the command, or find it running already, and follow it to its end.

    Args:
        command: what to run.
        options: where.
        write: receives the job's log as it arrives.

    Raises:
        UserError: if the cluster doesn't answer, has another Ray, or can't read what the job reads.
    """
    variables = _values_of(options.env)
    client = connect(options.address)
    entrypoint = command.entrypoint(options.as_json)
    found = _running(client, options.address, command, entrypoint)
    job = found or _send(client, command, options, entrypoint, variables)
    try:  # from here on, an interruption says what happens to the job
        if found:
            log.info("job %s does this already; following it", job)
        else:
            log.info("job %s sent to %s", job, options.address)
        return follow(client, job, write)
    except Exception:
        raise
    except BaseException:  # Ctrl-C or SIGTERM of this process
        _part_from(client, job, options)
        raise


def connect(address: str) -> Any:
    """A client of the job server.

    Raises:
        UserError: if it can't be reached, refuses the token, or runs another version of Ray.
    """
    import ray

    client = job_client(address)
    theirs = client.ray_version
    if theirs != ray.__version__:
        raise UserError(
            f"{address}: the cluster has Ray {theirs}, this machine {ray.__version__}; "
            f"use the cluster's image, or pip install 'ray[default]=={theirs}' here"
        )
    return client


def _send(
    client: Any, command: Command, options: RayOptions, entrypoint: str, variables: dict[str, str]
) -> str:
    several = _several_nodes(options.address)
    with tempfile.TemporaryDirectory(prefix="era-submit-") as scratch:
        runtime: dict[str, Any] = {
            "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS), **variables}
        }
        shipped: frozenset[str] = frozenset()
        if options.working_dir:
            package, shipped = pack(options.working_dir, scratch)
            runtime["working_dir"] = str(package)
            runtime["env_vars"].setdefault("ERA_REVISION", git_revision(Path(options.working_dir)))
        refuse_places(command, several, shipped)
        name = f"era-{command.verb}-{secrets.token_hex(4)}"
        what = {"runtime_env": runtime, "metadata": {TARGET: _key(command)}}
        for left in reversed(range(SENDS)):
            try:
                return str(client.submit_job(entrypoint=entrypoint, submission_id=name, **what))
            except OSError as error:  # it may have arrived: the submission id shows it
                if not left:
                    raise UserError(
                        f"{options.address}: the connection broke ({type(error).__name__}); the "
                        "same command again goes on, whether the job has started or not"
                    ) from None
                time.sleep(PAUSE)
            except RuntimeError as error:
                if left < SENDS - 1 and name in str(error):  # an earlier one arrived after all
                    return name
                reason = str(error).partition(":")[0]  # the rest may quote what was sent
                raise UserError(f"{options.address}: the job was refused ({reason})") from None
    raise AssertionError("unreachable")


def _running(client: Any, address: str, command: Command, entrypoint: str) -> str:
    """The running job with the same target; empty if there is none."""
    try:
        jobs = client.list_jobs()
    except (RuntimeError, OSError) as error:
        reason = str(error).partition("\n")[0][:200] or type(error).__name__
        raise UserError(f"{address}: its jobs cannot be listed ({reason}); try again") from None
    for job in jobs:
        if job.status.is_terminal() or (job.metadata or {}).get(TARGET) != _key(command):
            continue
        if same_work(job.entrypoint, entrypoint):
            return str(job.submission_id)
        raise UserError(
            f"{command.target}: job {job.submission_id} works on it with other arguments; "
            "stop it first, or choose another name"
        )
    return ""


def _key(command: Command) -> str:
    return command.target.rstrip("/")


def _several_nodes(address: str) -> bool:
    """Whether work may be placed on more than one node, now or after an autoscaler adds some.

    An incomplete answer is enough, since a node that is not listed makes several. Nodes that
    have left the cluster count in Ray's total, so that its own check for completeness refuses
    every cluster that ever lost one.
    """
    from ray.util.state import list_nodes

    alive: list[tuple[str, str, str | bool | int | float]] = [("state", "=", "ALIVE")]
    try:
        with no_address(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for _ in range(10):
                nodes = list_nodes(
                    address=address, filters=alive, limit=100, raise_on_missing_output=False
                )
                if nodes:  # a head that has just started lists none for a second
                    break
                time.sleep(1.0)
    except Exception as error:  # the state API raises whatever its HTTP client and server do
        log.warning(
            "%s: the cluster does not list its nodes (%s); assuming several",
            address,
            type(error).__name__,
        )
        return True
    return len(nodes) != 1 or not (nodes[0].resources_total or {}).get("CPU")


def _values_of(names: Sequence[str]) -> dict[str, str]:
    for name in names:
        if "=" in name:
            key = name.partition("=")[0]
            raise UserError(f"--env {key}: give the name only; the value comes from here")
        if name not in os.environ:
            raise UserError(f"--env {name}: not set in this environment")
    return {name: os.environ[name] for name in names}


def _part_from(client: Any, job: str, options: RayOptions) -> None:
    """Say what happens to the job, or stop it and wait until it has saved."""
    stop = f"ray job stop --address {options.address} {job}"
    if not options.stop_on_exit:
        log.warning(
            "job %s continues without this command: the same command follows it, `%s` ends it",
            job,
            stop,
        )
        return
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # supervisors send it twice; Ctrl-C still ends us
    log.warning("stopping job %s; it may save for %d s", job, STOP_SECONDS)
    try:
        client.stop_job(job)
        wait_for(
            lambda: client.get_job_status(job).is_terminal(),
            f"job {job} to stop",
            STOP_SECONDS + 30,
        )
    except (RuntimeError, OSError):  # a wait that ended too
        log.warning("job %s may still run: the cluster doesn't answer; `%s` ends it", job, stop)
        return
    log.warning("job %s is stopped; the same command resumes its work", job)
