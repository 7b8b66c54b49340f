"""Following a run: `metrics.jsonl` is the truth, W&B mirrors it."""

from pipeline.tracking.spool import Spool
from pipeline.tracking.tracker import Tracker

__all__ = ["Spool", "Tracker"]
