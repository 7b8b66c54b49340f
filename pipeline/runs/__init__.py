"""`era runs`: lists runs, trials and checkpoints, and downloads the best; needs no cluster."""

from pipeline.runs.browse import best_run, compare_runs, list_runs, show_run
from pipeline.runs.pull import pull
from pipeline.runs.search import Run, find_runs

__all__ = ["Run", "best_run", "compare_runs", "find_runs", "list_runs", "pull", "show_run"]
