"""Deleting the checkpoints that are no longer needed, and nothing else."""

from __future__ import annotations

from collections.abc import Callable

from pipeline import storage
from pipeline.errors import StorageDown, UserError
from pipeline.runfolder import BEST_BY, Checkpoint, RunFolder, best_first, open_checkpoint
from pipeline.runfolder.names import COMMIT


class Pruner:
    """Deletes checkpoints of one run on behalf of one attempt.

    What it does not know to be superseded stays: steps above the one just saved, which belong to a
    newer attempt; steps that were passed over; checkpoints that cannot be read now; and folders
    without a COMMIT, unless the call before found them without it too.

    Args:
        folder: the run's.
        guard: called before every deletion; raises where the run belongs to another attempt.
    """

    def __init__(self, folder: RunFolder, guard: Callable[[], None]) -> None:
        self.folder, self.guard = folder, guard
        self.spared: set[int] = set()  # steps that are never deleted
        self._unfinished: set[int] = set()

    def prune(self, keep_best: int, last: int, metric: str = BEST_BY) -> None:
        """Delete all but the best `keep_best` by a metric and the one of step `last`.

        Where fewer have the metric the newest others take the free places. COMMIT goes first.
        """
        steps = [s for s in self.folder.listed_steps() if s <= last and s not in self.spared]
        committed = [s for s in steps if storage.exists(self._commit_url(s))]
        opened = [c for c in map(self._open, committed) if c is not None]
        best = [c.step for c in best_first(opened, metric)][:keep_best]
        others = [c.step for c in reversed(opened) if c.step not in (*best, last)]
        keep = {last, *best, *others[: keep_best - len(best)]}
        unfinished = {step for step in steps if step not in committed and step != last}
        superseded = {c.step for c in opened} - keep
        for step in sorted(superseded | (unfinished & self._unfinished)):
            self._delete(step)
        self._unfinished = unfinished

    def _open(self, step: int) -> Checkpoint | None:
        try:
            return open_checkpoint(self.folder.checkpoint_url(step))
        except StorageDown:
            raise
        except UserError:  # a bad answer is no reason to delete anything
            return None

    def _delete(self, step: int) -> None:
        url = self.folder.checkpoint_url(step)
        self.guard()
        storage.delete(self._commit_url(step))
        for entry in storage.find(url):
            self.guard()
            storage.delete(entry.url)
        storage.delete(url)  # the empty folder of a local run

    def _commit_url(self, step: int) -> str:
        return storage.join(self.folder.checkpoint_url(step), COMMIT)
