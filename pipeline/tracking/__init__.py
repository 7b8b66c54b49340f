"""Following a run: `metrics.jsonl` is the truth, W&B mirrors it.

The trainer writes to `Tracker`. Rows are spooled to local files, which every checkpoint puts whole
at the run's root, and which a resumed attempt cuts back to its checkpoint's step. A thread of its
own copies rows from the spooled file to W&B, so that W&B can be slow, broken or away.

W&B without a network: the attempts of one run leave one folder each,
`<run>/wandb/offline-run-<time>-<id>/`, all with one run id. No step is in two of them: an attempt
reads what the earlier ones left and goes on after it. `wandb sync <run>/wandb/offline-run-*` merges
them into one run, in order of time.
"""

from pipeline.tracking.spool import Spool
from pipeline.tracking.tracker import Tracker

__all__ = ["Spool", "Tracker"]
