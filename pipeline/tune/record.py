"""`.trial.json`: what a trial's folder must say about it beyond what its run wrote.

The process of `era tune` is the only writer. A decision about a trial is written here before it
takes effect, so that it survives whatever is killed next.
"""

from __future__ import annotations

import logging
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline import storage

log = logging.getLogger("era")
FILE = ".trial.json"
MAX_BYTES = 1 << 16


class TrialRecord(BaseModel):
    """A trial's state.

    Attributes:
        point: the trial's value for each key of the space.
        judged: the last step whose validation result the scheduler has decided about.
        stopped_at: the step at which the trial was stopped early; 0 = it was not.
        failures: how often it has failed, the interruptions of nodes left out.
        failed: no retries are left. error: the last failure, in one line.
    """

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    point: dict[str, Any]
    judged: int = Field(default=0, ge=0)
    stopped_at: int = Field(default=0, ge=0)
    failures: int = Field(default=0, ge=0)
    failed: bool = False
    error: str = Field(default="", max_length=2000)


def read_record(trial_url: str) -> TrialRecord | None:
    """Read a trial's record; None where there is none, or where it is damaged, with a warning."""
    url = storage.join(trial_url, FILE)
    if not storage.exists(url):
        return None
    try:
        if storage.size(url) > MAX_BYTES:
            raise ValueError("too large")
        return TrialRecord.model_validate_json(storage.read_bytes(url))
    except (ValidationError, ValueError):
        log.warning("%s: damaged; the trial's state is rebuilt from its run alone", url)
        return None


def write_record(trial_url: str, record: TrialRecord) -> None:
    """Write a trial's record, retrying through outages of the storage."""
    url = storage.join(trial_url, FILE)
    text = record.model_dump_json(indent=1) + "\n"
    storage.retry_outages(lambda: storage.write_text(url, text), url)
