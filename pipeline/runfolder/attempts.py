"""The attempts of a run or sweep: one object for each, `attempts/NNNN-ID.json`; the newest owns it.

`attempts.jsonl` is a view of these objects, rewritten when an attempt begins. It decides nothing,
so that two writers at a time cannot lose an attempt.
"""

from __future__ import annotations

import platform
import re
import secrets
from datetime import UTC, datetime
from typing import Any

from pipeline import storage
from pipeline.config import TrainConfig
from pipeline.errors import UserError
from pipeline.runfolder.frozen import free_part
from pipeline.runfolder.lines import Line, format_line, parse_lines, read_lines
from pipeline.runfolder.names import ATTEMPT_FOLDER, ATTEMPTS

_NAME = re.compile(r"([0-9]{4,9})-([0-9a-f]{16})\.json")
Key = tuple[int, str]  # number and id; the greatest owns the run


def begin_attempt(
    run_url: str, config: TrainConfig, resumed_from: int | None, within: str = ""
) -> str:
    """Record that an attempt begins.

    Args:
        resumed_from: step of the checkpoint that it starts from.
        within: the attempt of the command, where a later group of its workers begins this one.

    Returns:
        Its id, `NNNN-ID`, which makes it the run's owner.
    """
    values = {
        "workers": config.scaling.workers.to_plain(),
        "resumed_from": resumed_from,
        "free": free_part(config),
        **({"within": within} if within else {}),
    }
    return claim(run_url, values)


def claim(url: str, values: Line) -> str:
    """Become the owner of a folder; return the attempt's id, `NNNN-ID`.

    Args:
        url: of a run or a sweep. values: what else is recorded of the attempt.
    """
    identity = secrets.token_hex(8)
    earlier = read_lines(storage.join(url, ATTEMPTS))
    started = datetime.now(UTC).isoformat(timespec="seconds")
    number = 0
    while True:  # until no other attempt that began at the same time has this number
        replaced, number = number, max([number, len(earlier), *(n for n, _ in _keys(url))]) + 1
        key = number, identity
        line = {"attempt": number, "id": identity, "started": started, **values}
        storage.write_json(_url(url, key), line)
        if replaced:
            storage.delete(_url(url, (replaced, identity)))
        if max([*_keys(url), key]) == key:
            break
    _publish(url, earlier, line)
    return f"{number:04d}-{identity}"


def begin_group(
    run_url: str, config: TrainConfig, resumed_from: int | None, attempt: str, first: bool
) -> str:
    """Return the attempt of a group of workers: the command's, or one of its own within that.

    Ray replaces a group by a larger one, or one whose node is taken away, as often as need be, and
    rank 0 of the group before may still be writing.

    Args:
        attempt: the command's. first: whether the group is the first, as far as is known.

    Raises:
        UserError: if another command has taken the run over, or wrote to another place.
    """
    require_visible(run_url, attempt)
    if not require_command(run_url, attempt) and first:
        return attempt
    return begin_attempt(run_url, config, resumed_from, attempt)


def require_visible(run_url: str, attempt: str) -> None:
    """Refuse to work where the folder is not the command's, as on the disk of another node.

    Raises:
        UserError: naming this node.
    """
    if not storage.exists(_url(run_url, attempt_key(attempt))):
        raise UserError(
            f"run {run_url}: the command's own attempt is not there on {platform.node()}; give a "
            "run.root that all nodes share: an object store, or a file system mounted on each"
        )


def require_command(run_url: str, attempt: str) -> bool:
    """Refuse to continue where another command has begun.

    Args:
        attempt: the command's.

    Returns:
        Whether a later group of this command's workers has begun an attempt of its own.

    Raises:
        UserError: if another command has taken the run over.
    """
    newest = _newest(run_url, attempt)
    if newest <= attempt_key(attempt):
        return False
    url = _url(run_url, newest)
    lines = parse_lines(storage.read_text(url).replace("\n", " "), url)
    if [line.get("within") for line in lines] != [attempt]:
        raise _taken_over(run_url, newest)
    return True


def require_owner(url: str, owner: str, kind: str = "run") -> None:
    """Refuse to continue where a newer attempt has begun.

    Args:
        owner: what `begin_attempt` or `claim` returned. kind: "run" or "sweep".

    Raises:
        UserError: if it has been taken over, for example by the command on another machine, or if
            the folder was removed.
    """
    newest = _newest(url, owner, kind)
    if newest > attempt_key(owner):
        raise _taken_over(url, newest, kind)


def _newest(url: str, own: str, kind: str = "run") -> Key:
    """The newest attempt. One whose folder was removed is not ahead of those that came after."""
    key, keys = attempt_key(own), _keys(url)
    if key not in keys and not storage.exists(_url(url, key)):  # a listing may be late
        raise UserError(
            f"{kind} {url}: attempt {key[0]} is no longer recorded there, so the folder was "
            "removed; this one stops"
        )
    return max(keys, default=(0, ""))


def _taken_over(url: str, newest: Key, kind: str = "run") -> UserError:
    return UserError(
        f"{kind} {url}: attempt {newest[0]} has taken it over since; this one stops. Train under "
        f"another run.name to have two {kind}s"
    )


def attempt_key(attempt: str) -> Key:
    """Orders the ids of attempts by age; earlier versions wrote none, which is the oldest."""
    number, _, identity = attempt.partition("-")
    return (int(number), identity) if number.isascii() and number.isdecimal() else (0, attempt)


def attempt_before(url: str, attempt: str) -> str:
    """The attempt that owned a folder before; empty where there was none."""
    earlier = [key for key in _keys(url) if key < attempt_key(attempt)]
    return "{:04d}-{}".format(*max(earlier)) if earlier else ""


def _keys(run_url: str) -> list[Key]:
    names = storage.list_names(storage.join(run_url, ATTEMPT_FOLDER))
    matches = filter(None, map(_NAME.fullmatch, names))
    return sorted((int(match[1]), match[2]) for match in matches)


def _url(run_url: str, key: Key) -> str:
    return storage.join(run_url, ATTEMPT_FOLDER, f"{key[0]:04d}-{key[1]}.json")


def _objects(run_url: str, known: list[Line]) -> list[Line]:
    """The attempts that the view lacks: those that it has need not be read at every start."""
    ids = {line.get("id") for line in known}
    urls = [_url(run_url, key) for key in _keys(run_url) if key[1] not in ids]
    texts = [(url, storage.read_text(url).replace("\n", " ")) for url in urls]
    return [line for url, text in texts for line in parse_lines(text, url)]


def _merged(*sources: list[Line]) -> list[Line]:
    """Each attempt once, by number; those of earlier versions are only in attempts.jsonl."""
    known: dict[Any, Line] = {}
    for place, line in enumerate(line for source in sources for line in source):
        known[str(line.get("id", place))] = line
    return sorted(known.values(), key=lambda line: _number(line.get("attempt")))


def _number(value: Any) -> int:
    return value if isinstance(value, int) else 0


def _publish(run_url: str, earlier: list[Line], line: Line) -> None:
    lines = _merged(earlier, _objects(run_url, earlier), [line])
    storage.write_text(storage.join(run_url, ATTEMPTS), "".join(map(format_line, lines)))
