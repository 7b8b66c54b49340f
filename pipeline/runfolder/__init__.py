"""A run's folder, `<run.root>/<run.name>/`: every file name, who owns it, and what is in it.

config.yaml                  the configuration of the first start; its frozen part never changes
attempts/NNNN-ID.json        one object per attempt; the newest owns the run
attempts.jsonl               a view of these objects
metrics.jsonl, samples.jsonl as of the newest checkpoint, which has a copy of both
chaos.jsonl, nonfinite.jsonl, skipped.jsonl
result.json                  what the command printed with --json, once the run is finished
logs/NNNN-ID.log             the end of the log of the command that began that attempt
checkpoints/newest.json      the folder of the newest checkpoint, for stores with late listings
checkpoints/step-00000200/   or, where that name was taken, step-00000200.WRITER/
    CLAIM                    which attempt writes this folder, and no other
    model.safetensors        averaged weights under plain names
    training.pt              everything else that resuming needs (loaded with weights_only=True)
    metrics.jsonl, samples.jsonl
    meta.json                step, network, hashes, versions
    COMMIT                   written last: attempt, metrics, bytes and sha256 of the files
"""

from pipeline.runfolder.attempts import attempt_before, attempt_key, claim, require_owner
from pipeline.runfolder.checkpoint import Checkpoint, open_checkpoint
from pipeline.runfolder.commit import FORMAT, Commit, fingerprint, write_commit
from pipeline.runfolder.folder import (
    BEST_BY,
    RunFolder,
    best_first,
    is_run,
    newest_of_each_step,
    run_of_checkpoint,
)
from pipeline.runfolder.frozen import freeze, frozen_hash, frozen_part, load_frozen
from pipeline.runfolder.lines import parse_line, read_lines, step_of_line
from pipeline.runfolder.outcome import KeptLog, read_result, write_result
from pipeline.runfolder.ranking import higher_is_better, ranked

__all__ = [
    "BEST_BY",
    "FORMAT",
    "Checkpoint",
    "Commit",
    "KeptLog",
    "RunFolder",
    "attempt_before",
    "attempt_key",
    "best_first",
    "claim",
    "fingerprint",
    "freeze",
    "frozen_hash",
    "frozen_part",
    "higher_is_better",
    "is_run",
    "load_frozen",
    "newest_of_each_step",
    "open_checkpoint",
    "parse_line",
    "ranked",
    "read_lines",
    "read_result",
    "require_owner",
    "run_of_checkpoint",
    "step_of_line",
    "write_commit",
    "write_result",
]
