"""The head's preStop hook, `python -m pipeline.cluster.stop_jobs`: jobs save before the pod goes.

KubeRay polls the dashboard and would count a stopped job as finished. Hence the dashboard is
suspended once it has stopped the jobs: the operator submits them to the next head, where they
resume.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

from pipeline.cluster.jobs import job_client
from pipeline.cluster.waiting import wait_for

ADDRESS = "http://127.0.0.1:8265"
SUPERVISOR = b"ray::JobSupervisor"  # Ray's process beside each job's driver; ends with it
DASHBOARD = b"ray/dashboard/dashboard.py"
SECONDS = 120.0  # more than RAY_JOB_STOP_WAIT_TIME_S, less than the pod's grace


def main() -> None:
    """Stop the jobs of this machine, if there are any, and wait until they have ended."""
    if not any(_processes(SUPERVISOR)):
        return
    try:
        client = job_client(ADDRESS)
        for job in client.list_jobs():
            if job.submission_id and not job.status.is_terminal():
                client.stop_job(job.submission_id)
    finally:
        for process in _processes(DASHBOARD):
            os.kill(process, signal.SIGSTOP)
    wait_for(lambda: not any(_processes(SUPERVISOR)), "the jobs to save and stop", SECONDS)


def _processes(title: bytes) -> Iterator[int]:
    """Processes of this machine whose command line has these words."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if title in path.read_bytes():
                yield int(path.parent.name)
        except OSError:  # gone meanwhile
            continue


if __name__ == "__main__":
    main()
