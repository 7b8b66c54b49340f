"""`era doctor`."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any

import typer

from pipeline.cli.common import JsonFlag, run_verb
from pipeline.cli.edge import say

MARKS = {"ok": "ok     ", "warning": "warning", "failure": "FAILURE"}


def doctor(
    address: Annotated[
        str, typer.Option(help="A dashboard (http://...) or cluster (HOST:PORT); else RAY_ADDRESS.")
    ] = "",
    bucket: Annotated[str, typer.Option(help="A folder to test writing and deleting in.")] = "",
    data: Annotated[str, typer.Option(help="A split whose shards are read as a test.")] = "",
    workers: Annotated[
        int, typer.Option(min=0, help="Ranks of the all-reduce; 0: one per node, or per GPU.")
    ] = 0,
    as_json: JsonFlag = False,
) -> None:
    """Check this machine, the cluster, the bucket and the data; failures come with a remedy.

    With a dashboard's address, a job on the cluster runs the checks of cluster, bucket and data.
    """

    def work() -> dict[str, Any]:
        from pipeline.doctor import diagnose

        found = []
        for finding in diagnose(address, bucket, data, workers):
            found.append(vars(finding))
            if not as_json:
                say(f"{MARKS[finding.state]}  {finding.check}: {finding.text}", 0)
        counts = Counter(finding["state"] for finding in found)
        failures, warnings = counts["failure"], counts["warning"]
        return {
            "checks": found,
            "warnings": warnings,
            "failures": failures,
            "incomplete": bool(failures),
        }

    run_verb(work, _show, as_json)


def _show(summary: dict[str, Any]) -> None:
    counts = f"{summary['warnings']} warnings, {summary['failures']} failures"
    print(f"{len(summary['checks'])} checks, {counts}")
