"""Checks of a cluster behind its dashboard: a Ray job there runs them."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pipeline import storage
from pipeline.border import BadInput, parse_json, validated
from pipeline.cluster import job_client, wait_for
from pipeline.doctor.finding import FAILURE, Finding, judged

LONGEST_SECONDS = 420  # of the whole job
NOT_FOUND = 127  # a shell's exit code


@dataclass(frozen=True)
class _Result:
    """What `era doctor --json` prints, as far as it is used here."""

    checks: list[Finding]


def check_dashboard(address: str, bucket: str, data: str, workers: int) -> Iterator[Finding]:
    """Reach the job server, compare versions, and run `era doctor` there.

    Raises:
        UserError: if it does not answer, or refuses the token; for a URL with credentials.
    """
    import ray

    for url in (url for url in (bucket, data) if "://" in url):
        storage.refuse_credentials(url)  # a job's command can be read by everybody there
    client = job_client(address)
    there, here = client.ray_version, ray.__version__
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


def _findings(client: Any, job: str) -> Iterator[Finding]:
    """The findings of the job, once it has ended."""
    try:
        wait_for(lambda: client.get_job_status(job).is_terminal(), "its checks", LONGEST_SECONDS)
    except TimeoutError:
        client.stop_job(job)
        cure = f"see `ray job logs {job}` and `ray status`"
        yield Finding("cluster", FAILURE, f"no result within {LONGEST_SECONDS} s; {cure}")
        return
    found = _last_checks(client.get_job_logs(job))
    if found is not None:
        for finding in found:
            yield Finding(f"cluster: {finding.check}", finding.state, finding.text)
        client.delete_job(job)
        return
    yield _no_result(client, job)


def _last_checks(log: str) -> list[Finding] | None:
    for line in reversed(log.splitlines()):
        if line.startswith('{"checks"'):
            try:
                values = parse_json(line.encode("utf-8", "surrogatepass"), "the job's result")
                return validated(_Result, values, "the job's result").checks
            except BadInput:
                return None
    return None


def _no_result(client: Any, job: str) -> Finding:
    code = client.get_job_info(job).driver_exit_code
    if code == NOT_FOUND:
        text = "the cluster has no `era`; give its nodes the image of this repository's Dockerfile"
        return Finding("cluster", FAILURE, text)
    text = f"`era doctor` gave no result there (exit code {code}); see `ray job logs {job}`"
    return Finding("cluster", FAILURE, text)
