"""Hypothesis strategies for inputs that are close to a valid one."""

from __future__ import annotations

import copy
import json
from typing import Any

from hypothesis import strategies as st

HOSTILE: list[Any] = [
    *(None, True, -1, 0, 1, 2**31, 2**63, 10**18, 10**400, 0.5, -0.0, 1e308, float("nan")),
    *(float("inf"), "", " ", "\0", "\ud800", "a\nb", "../x", "/etc/passwd", "x" * 5000, "1e400"),
    *("\u0661", "\u202eabc", "[/b]", "${oc.env:HOME}", [], {}, [[]], [None], {"": 0}, {"a": {}}),
]
CHUNKS = [
    *(b"\0", b"\xff", b"\xff" * 4, b"\0" * 64, b"\x80", b"\n", b"{", b"[" * 2000, b'"', b"NaN"),
    *(b"&a ", b"*a", b"!!python/object", b"\r", b"\xe2\x80\xa8", b"-", b": ", b"9" * 30),
]
EDITS = ("flip", "insert", "cut", "end", "repeat")


@st.composite
def bytes_near(draw: st.DrawFn, sample: bytes) -> bytes:
    """The sample with up to four edits; often near its start, where headers are."""
    data = bytearray(sample)
    for _ in range(draw(st.integers(1, 4))):
        most = draw(st.sampled_from([min(64, len(data)), min(512, len(data)), len(data)]))
        place = draw(st.integers(0, max(most - 1, 0)))
        match draw(st.sampled_from(EDITS)):
            case "flip":
                data[place : place + 1] = draw(st.binary(min_size=1, max_size=4))
            case "insert":
                data[place:place] = draw(st.sampled_from(CHUNKS))
            case "cut":
                del data[place : place + draw(st.integers(1, 64))]
            case "end":
                del data[place:]
            case "repeat":
                data[place:place] = data[place : place + 64]
    return bytes(data)


@st.composite
def values_near(draw: st.DrawFn, sample: Any) -> Any:
    """The sample with up to two values replaced, removed, renamed or added."""
    whole = [copy.deepcopy(sample)]
    for _ in range(draw(st.integers(1, 2))):
        holder: Any = whole
        key: Any = 0
        while isinstance(holder[key], (dict, list)) and holder[key] and draw(st.integers(0, 4)):
            holder = holder[key]
            keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
            key = draw(st.sampled_from(keys))
        if holder is not whole and draw(st.integers(0, 4)) == 0:
            del holder[key]
        else:
            # A copy: a later edit may go into it.
            holder[key] = copy.deepcopy(draw(st.sampled_from(HOSTILE)))
    return whole[0]


def json_near(sample: bytes) -> st.SearchStrategy[bytes]:
    """A JSON text (or one of YAML, which JSON is) near a valid one: other values, other bytes."""
    other = values_near(json.loads(sample)).map(lambda value: json.dumps(value).encode())
    return st.one_of(other, other, bytes_near(sample))


def lines_near(sample: bytes) -> st.SearchStrategy[bytes]:
    """JSON lines near valid ones."""
    lines = [json.loads(line) for line in sample.splitlines()]
    other = values_near(lines).map(
        lambda value: "".join(
            json.dumps(line) + "\n" for line in (value if isinstance(value, list) else [value])
        ).encode()
    )
    return st.one_of(other, bytes_near(sample))
