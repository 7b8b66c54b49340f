"""A cluster that is reached through its dashboard only: a Ray job there runs the checks."""

from __future__ import annotations

import json
import os
import shlex
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

from pipeline.doctor.finding import FAILURE, Finding, judged
from pipeline.doctor.machine import ANSWER
from pipeline.errors import UserError

PATIENCE = 420  # seconds for the whole job
NOT_FOUND = 127  # a shell's exit code


def check_dashboard(address: str, bucket: str, data: str, workers: int) -> Iterator[Finding]:
    """Reach the job server, compare versions, and run `era doctor` there.

    Raises:
        UserError: if it does not answer, or not to us.
    """
    _knock(address)
    client = _client(address)
    there, here = _versions(client)
    text = f"{address} answers, Ray {there} there and {here} here"
    yield judged("ray jobs", there == here, text, f"install ray=={there} or change the image")
    command = ["era", "doctor", "--json"]
    for option, value in (("--bucket", bucket), ("--data", data)):
        command += [option, value] if value else []
    command += ["--workers", str(workers)] if workers else []
    try:
        job = client.submit_job(entrypoint=shlex.join(command))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        cure = "see dashboard.log and dashboard_agent.log on the head; is its disk or memory full?"
        yield Finding("cluster", FAILURE, f"no job can be started there ({reason}); {cure}")
        return
    yield from _findings(client, job)


def _knock(address: str) -> None:
    """Ray's own client would wait for ever."""
    try:
        urllib.request.urlopen(f"{address.rstrip('/')}/api/version", timeout=ANSWER).close()
    except urllib.error.HTTPError:
        return  # it answers: a token is missing
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        reason = getattr(reason, "strerror", None) or reason
        cure = "check the address, the port-forward, and that the head runs"
        raise UserError(f"{address} does not answer ({reason}); {cure}") from None


def _client(address: str) -> Any:
    os.environ["RAY_API_SERVER_ADDRESS"] = address  # else RAY_ADDRESS would win over ours
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # else Ray would not send it
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    try:
        return JobSubmissionClient(address)
    except (AuthenticationError, ConnectionError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        cure = "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH, or RAY_AUTH_TOKEN"
        raise UserError(f"{address} refuses us ({reason}); {cure}") from None


def _versions(client: Any) -> tuple[str, str]:
    import ray

    answer = client._do_request("GET", "/api/version")  # no public call gives Ray's version
    return str(answer.json().get("ray_version", "unknown")), ray.__version__


def _findings(client: Any, job: str) -> Iterator[Finding]:
    """What the job found, once it has ended."""
    deadline = time.monotonic() + PATIENCE
    while not client.get_job_status(job).is_terminal():
        if time.monotonic() > deadline:
            client.stop_job(job)
            cure = f"see `ray job logs {job}` and `ray status`"
            yield Finding("cluster", FAILURE, f"no result within {PATIENCE} s; {cure}")
            return
        time.sleep(0.5)
    found = _last_json(client.get_job_logs(job))
    if found is not None:
        for finding in found["checks"]:
            yield Finding(f"cluster: {finding['check']}", finding["state"], finding["text"])
        client.delete_job(job)
        return
    yield _no_result(client, job)


def _last_json(log: str) -> dict[str, Any] | None:
    for line in reversed(log.splitlines()):
        if line.startswith('{"checks"'):
            return dict(json.loads(line))
    return None


def _no_result(client: Any, job: str) -> Finding:
    code = client.get_job_info(job).driver_exit_code
    if code == NOT_FOUND:
        text = "the cluster has no `era`; give its nodes the image of this repository's Dockerfile"
        return Finding("cluster", FAILURE, text)
    text = f"`era doctor` gave no result there (exit code {code}); see `ray job logs {job}`"
    return Finding("cluster", FAILURE, text)
