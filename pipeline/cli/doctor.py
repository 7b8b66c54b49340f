"""`era doctor`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from pipeline.cli.common import JsonFlag, run_verb

MARKS = {"ok": "ok     ", "warning": "warning", "failure": "FAILURE"}


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("doctor")(doctor)


def doctor(
    address: Annotated[
        str, typer.Option(help="A Ray dashboard (http://...) or cluster; else RAY_ADDRESS.")
    ] = "",
    bucket: Annotated[str, typer.Option(help="A folder to write, read and delete in.")] = "",
    data: Annotated[str, typer.Option(help="A split whose shards are to be reached.")] = "",
    as_json: JsonFlag = False,
) -> None:
    """Check this machine, the cluster, the bucket and the data; every failure with its cure."""

    def work() -> dict[str, Any]:
        from pipeline.doctor import diagnose

        found = []
        for finding in diagnose(address, bucket, data):
            found.append(vars(finding))
            if not as_json:
                typer.echo(f"{MARKS[finding.state]}  {finding.check}: {finding.text}", err=True)
        failures = sum(finding["state"] == "failure" for finding in found)
        return {"checks": found, "failures": failures, "incomplete": bool(failures)}

    run_verb(work, _show, as_json)


def _show(summary: dict[str, Any]) -> None:
    print(f"{len(summary['checks'])} checks, {summary['failures']} failures")
