"""`era runs`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from pipeline.cli.common import JsonFlag, run_verb, show_summary, show_with_metrics
from pipeline.errors import printable

BEST_BY = "val/psnr"  # that of `pipeline.runfolder`, whose import would delay every verb
WIDEST = 100_000  # characters of a row
Url = Annotated[str, typer.Argument(metavar="URL", help="A root, sweep, run or checkpoint.")]
Metric = Annotated[str, typer.Option("--metric", help="The metric that ranks runs.")]


def register(app: typer.Typer) -> None:
    """Add the verb and its parts."""
    runs = typer.Typer(no_args_is_help=True, help="Inspect runs and download the best one.")
    for part in (list_, show, best, compare, pull):
        runs.command(part.__name__.rstrip("_"))(part)
    app.add_typer(runs, name="runs")


def list_(url: Url, metric: Metric = BEST_BY, as_json: JsonFlag = False) -> None:
    """List runs and trials, best first."""
    _run("list_runs", lambda room: room(url, metric), _show_rows, as_json)


def show(url: Url, metric: Metric = BEST_BY, as_json: JsonFlag = False) -> None:
    """Show one run: its lineage, attempts and checkpoints."""
    _run("show_run", lambda room: room(url, metric), _show_run, as_json)


def best(url: Url, metric: Metric = BEST_BY, as_json: JsonFlag = False) -> None:
    """Name the best checkpoint of all runs found."""
    _run("best_run", lambda room: room(url, metric), show_with_metrics, as_json)


def compare(
    urls: Annotated[list[str], typer.Argument(metavar="URL...", help="Roots, sweeps or runs.")],
    metric: Metric = BEST_BY,
    as_json: JsonFlag = False,
) -> None:
    """Show the settings in which runs differ, and their metrics."""
    _run("compare_runs", lambda room: room(urls, metric), _show_differences, as_json)


def pull(
    url: Url,
    to: Annotated[str, typer.Option("--to", help="A local folder for the bundle.")],
    metric: Metric = BEST_BY,
    as_json: JsonFlag = False,
) -> None:
    """Download a checkpoint as a bundle that `era restore` and `era evaluate` take."""
    _run("pull", lambda room: room(url, to, metric), show_with_metrics, as_json)


def _run(
    name: str,
    work: Callable[[Callable[..., dict[str, Any]]], dict[str, Any]],
    show: Callable[[dict[str, Any]], None],
    as_json: bool,
) -> None:
    def call() -> dict[str, Any]:
        import pipeline.runs

        return work(getattr(pipeline.runs, name))

    run_verb(call, show, as_json)


def _show_rows(summary: dict[str, Any]) -> None:
    columns = {"name": "run", "value": summary["metric"], "step": "step", "steps": "of"}
    columns |= {"started": "started", "attempts": "attempts", "model": "model", "data": "data"}
    rows = [{**row, "size": _size(row["bytes"])} for row in summary["runs"]]
    _table({**columns, "size": "size"}, rows)


def _show_run(summary: dict[str, Any]) -> None:
    nested = ("config", "attempts", "checkpoints", "lineage", "bytes")
    show_summary({k: v for k, v in summary.items() if k not in nested})
    show_summary({f"lineage {k}": v for k, v in summary["lineage"].items()})
    told = ("attempt", "started", "workers", "resumed_from")
    _table({name: name.replace("_", " ") for name in told}, summary["attempts"])
    metrics = sorted({name for row in summary["checkpoints"] for name in row["metrics"]})
    rows = [
        {**row, **row["metrics"], "size": _size(row["bytes"])} for row in summary["checkpoints"]
    ]
    _table(
        {"checkpoint": "checkpoint", "saved": "saved", **{m: m for m in metrics}, "size": "size"},
        rows,
    )


def _show_differences(summary: dict[str, Any]) -> None:
    names = [row["name"] for row in summary["runs"]]
    columns = {"key": "", **{str(index): name for index, name in enumerate(names)}}
    head = {summary["metric"]: [row["value"] for row in summary["runs"]]}
    head["step"] = [row["step"] for row in summary["runs"]]
    rows = [
        {"key": key, **{str(i): value for i, value in enumerate(values)}}
        for key, values in {**head, **summary["differences"]}.items()
    ]
    _table(columns, rows)


def _table(columns: dict[str, str], rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for title in columns.values():
        table.add_column(Text(printable(title)), overflow="fold")
    for row in rows:
        # As text: names may look like markup.
        table.add_row(*(Text(_text(row.get(key))) for key in columns))
    # A terminal folds what is too wide; for a pipe or a file, each row is one line.
    console = Console() if sys.stdout.isatty() else Console(width=WIDEST)
    console.print(table)


def _text(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else printable(str(value))


def _size(count: int) -> str:
    return f"{count / 2**20:.1f} MiB"
