"""What goes wrong inside a run without ending it: non-finite steps, damaged samples."""

from __future__ import annotations

from pipeline.errors import UserError
from pipeline.runfolder import RunFolder
from pipeline.runfolder.lines import Line
from pipeline.runfolder.names import NONFINITE, SKIPPED
from pipeline.train.driver_channel import DriverChannel, Event
from pipeline.train.loop import gather_lists


class Incidents:
    """Records incidents in the run's folder and reports them to the driver, from rank 0.

    Args:
        folder: the run's folder.
        channel: to the driver.
        rank: of this worker.
        damaged: samples that the loader leaves out, with the reason; it grows meanwhile.
    """

    def __init__(
        self, folder: RunFolder, channel: DriverChannel, rank: int, damaged: dict[str, str]
    ) -> None:
        self.folder, self.channel, self.rank, self.damaged = folder, channel, rank, damaged
        self.told: set[str] = set()

    def not_finite(self, step: int, ids: list[str]) -> None:
        """Record a step that was skipped, with the samples of all ranks."""
        if self.rank == 0:
            self._note(NONFINITE, {"step": step, "ids": ids})
            self.channel.tell(Event(step, line=f"step {step} skipped: not finite", warning=True))

    def tell_damaged(self, step: int) -> None:
        """Report samples that were left out since the last call; every rank must call it."""
        damaged = dict(self.damaged)  # the loader's thread may add to it
        new = [f"{key}: {damaged[key]}" for key in sorted(damaged) if key not in self.told]
        self.told.update(damaged)
        found = sorted(set(gather_lists(new)))
        if self.rank == 0 and found:
            line = {"step": step, "damaged": found}
            self._note(SKIPPED, line)
            for text in found:
                self.channel.tell(Event(step, line=f"sample left out: {text}", warning=True))

    def _note(self, name: str, line: Line) -> None:
        """No result depends on these files: what stands in their way is said, and no more."""
        try:
            self.folder.note_once(name, line)
        except UserError as error:
            text = f"not recorded in {name}: {error}"
            self.channel.tell(Event(line["step"], line=text, warning=True))
