"""Which command works on a sweep: the one that began last. An earlier one stops."""

from __future__ import annotations

from pipeline import storage
from pipeline.errors import StorageDown
from pipeline.runfolder import attempt_before, claim, require_owner


class Owner:
    """A command's ownership of a sweep's folder.

    Args:
        url: of the sweep. trials: their number, for the record.
    """

    def __init__(self, url: str, trials: int) -> None:
        self.url = url
        self.attempt = storage.retry_outages(lambda: claim(url, {"trials": trials}), url)
        self.before = storage.retry_outages(lambda: attempt_before(url, self.attempt), url)

    def require(self) -> None:
        """To be called before anything is written.

        Raises:
            UserError: where the command has been started again since.
        """
        storage.retry_outages(lambda: require_owner(self.url, self.attempt, "sweep"), self.url)

    def look(self) -> None:
        """The same, now and then; where the storage does not answer, nothing is known."""
        try:
            require_owner(self.url, self.attempt, "sweep")
        except StorageDown:
            return
