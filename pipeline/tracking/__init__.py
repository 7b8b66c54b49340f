"""Tracking a run: `metrics.jsonl` is the record, W&B mirrors it.

The trainer writes to `Tracker`. Rows are spooled to local files that every checkpoint stores
complete in the run's folder, and that a resumed attempt cuts back to its checkpoint's step. A
separate thread copies rows from the spooled file to W&B, which may be slow, broken or absent.

Without a network, each attempt of a run leaves one folder (or more, after failures),
`<run>/wandb/offline-run-<time>-<id>/`, all with the same run id. No step is in two of them: an
attempt reads what earlier ones left and continues after it.
`wandb sync <run>/wandb/offline-run-*` merges them into one run, ordered by time.
"""

from pipeline.tracking.spool import Spool
from pipeline.tracking.tracker import Tracker

__all__ = ["Spool", "Tracker"]
