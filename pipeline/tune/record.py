"""What a trial's folder must say about it beyond what its run wrote: `.trial-NNNN-ID.json`.

Each command that works on the sweep has a file of its own, named after its attempt; the newest one
counts. So a late write of an earlier command, whose machine hung, cannot replace anything.
A decision about a trial is written here before it takes effect, so that it survives whatever is
killed next.
"""

from __future__ import annotations

import json
import logging
import re
from dataclasses import asdict, dataclass
from typing import Any

from pipeline import storage
from pipeline.border import BadInput, Bool, Count, Text, parse_json, validated
from pipeline.runfolder import attempt_key

log = logging.getLogger("era")
_NAME = re.compile(
    r"[.]trial(?:-([0-9]{4,9}-[0-9a-f]{16}))?[.]json"
)  # earlier versions: no attempt
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


def record_name(attempt: str) -> str:
    """The name of the file that an attempt writes."""
    return f".trial-{attempt}.json" if attempt else ".trial.json"


def read_record(trial_url: str, attempt: str = "", before: str = "") -> TrialRecord | None:
    """Read a trial's record; None where there is none that is sound. Warns of damaged ones.

    Args:
        attempt: whose record is wanted; where it has none, and by default, the newest.
        before: an attempt whose record counts though a listing, which may be late, lacks it.
    """
    for one in filter(None, (attempt, before)):
        url = storage.join(trial_url, record_name(one))
        if storage.exists(url) and (record := _read(url)):
            return record
    found = [match for match in map(_NAME.fullmatch, storage.list_names(trial_url)) if match]
    for match in sorted(found, key=lambda match: attempt_key(match[1] or ""), reverse=True):
        if record := _read(storage.join(trial_url, match[0])):
            return record
    return None


def _read(url: str) -> TrialRecord | None:
    try:
        if storage.size(url) > MAX_BYTES:
            raise BadInput(f"{url}: larger than {MAX_BYTES} bytes")
        return validated(TrialRecord, parse_json(storage.read_bytes(url), url, MAX_BYTES), url)
    except BadInput as error:
        log.warning("%s; an older record, or the trial's run alone, says what it can", error)
        return None


def write_record(trial_url: str, record: TrialRecord, attempt: str) -> None:
    """Write an attempt's record of a trial, retrying through outages of the storage."""
    url = storage.join(trial_url, record_name(attempt))
    text = json.dumps(asdict(record), indent=1) + "\n"
    storage.retry_outages(lambda: storage.write_text(url, text), url)
