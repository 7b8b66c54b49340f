"""Deleting the checkpoints that are no longer needed, and nothing else."""

from __future__ import annotations

from collections.abc import Callable

from pipeline import storage
from pipeline.errors import StorageDown, UserError
from pipeline.runfolder import (
    BEST_BY,
    Checkpoint,
    RunFolder,
    best_first,
    newest_of_each_step,
    open_checkpoint,
)
from pipeline.runfolder.names import COMMIT, step_of


class Pruner:
    """Deletes checkpoints of one run on behalf of one attempt.

    What it does not know to be superseded stays: steps above the one just saved, which belong to a
    newer attempt; folders that were passed over; checkpoints that cannot be read now; and folders
    without a COMMIT, unless the call before found them without it too.

    Args:
        folder: the run's.
        guard: called before every deletion; raises where the run belongs to another attempt.
    """

    def __init__(self, folder: RunFolder, guard: Callable[[], None]) -> None:
        self.folder, self.guard = folder, guard
        self.spared: set[str] = set()  # names of folders that are never deleted
        self._unfinished: set[str] = set()
        self._known: dict[str, Checkpoint] = {}  # a committed one does not change

    def prune(self, keep_best: int, last: int) -> None:
        """Delete all but the best `keep_best` by val/psnr and the one of step `last`.

        Where fewer have it the newest others take the free places. Of several checkpoints of one
        step the newest attempt's is the one that counts. COMMIT goes first.
        """
        listed = [n for n in self.folder.listed_names() if (step_of(n) or 0) <= last]
        names = [name for name in listed if name not in self.spared]
        new = [name for name in names if name not in self._known]
        committed = [name for name in new if storage.exists(self._commit_url(name))]
        self._known |= {n: c for n in committed if (c := self._open(n)) is not None}
        opened = [self._known[name] for name in names if name in self._known]
        counted = newest_of_each_step(opened)
        best = [c.step for c in best_first(counted, BEST_BY)][:keep_best]
        others = [c.step for c in reversed(counted) if c.step not in (*best, last)]
        steps = {last, *best, *others[: keep_best - len(best)]}
        keep = {c.name for c in counted if c.step in steps}
        unfinished = set(new) - set(committed)
        superseded = {c.name for c in opened} - keep
        for name in sorted(superseded | (unfinished & self._unfinished)):
            self._delete(name)
        self._unfinished = unfinished

    def _open(self, name: str) -> Checkpoint | None:
        try:
            return open_checkpoint(self.folder.checkpoint_url(name))
        except StorageDown:
            raise
        except UserError:  # a bad answer is no reason to delete anything
            return None

    def _delete(self, name: str) -> None:
        url = self.folder.checkpoint_url(name)
        self._known.pop(name, None)
        self.guard()
        storage.delete(self._commit_url(name))
        for entry in storage.find(url):
            self.guard()
            storage.delete(entry.url)
        storage.delete(url)  # the empty folder of a local run

    def _commit_url(self, name: str) -> str:
        return storage.join(self.folder.checkpoint_url(name), COMMIT)
