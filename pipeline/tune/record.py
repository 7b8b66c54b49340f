"""`.trial.json`: what a trial's folder must say about it beyond what its run wrote.

The process of `era tune` is the only writer. A decision about a trial is written here before it
takes effect, so that it survives whatever is killed next.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass
from typing import Any

from pipeline import storage
from pipeline.border import BadInput, Bool, Count, Text, parse_json, validated

log = logging.getLogger("era")
FILE = ".trial.json"
MAX_BYTES = 1 << 16


@dataclass
class TrialRecord:
    """A trial's state.

    Attributes:
        point: the trial's value for each key of the space.
        judged: the last step whose validation result the scheduler has decided about.
        stopped_at: the step at which the trial was stopped early; 0 = it was not.
        failures: how often it has failed, the interruptions of nodes left out.
        failed: no retries are left. error: the last failure, in one line.
    """

    point: dict[Text, Any]
    judged: Count = 0
    stopped_at: Count = 0
    failures: Count = 0
    failed: Bool = False
    error: Text = ""


def read_record(trial_url: str) -> TrialRecord | None:
    """Read a trial's record; None where there is none, or where it is damaged, with a warning."""
    url = storage.join(trial_url, FILE)
    if not storage.exists(url):
        return None
    try:
        if storage.size(url) > MAX_BYTES:
            raise BadInput(f"{url}: larger than {MAX_BYTES} bytes")
        return validated(TrialRecord, parse_json(storage.read_bytes(url), url, MAX_BYTES), url)
    except BadInput as error:
        log.warning("%s; the trial's state is rebuilt from its run alone", error)
        return None


def write_record(trial_url: str, record: TrialRecord) -> None:
    """Write a trial's record, retrying through outages of the storage."""
    url = storage.join(trial_url, FILE)
    text = json.dumps(asdict(record), indent=1) + "\n"
    storage.retry_outages(lambda: storage.write_text(url, text), url)
