"""The border: what comes from a file or a bucket is bounded and typed before anything uses it.

`parse_json` accepts strict JSON only; `validated` holds plain values against a type and names the
place of the first thing that is wrong. Both raise `BadInput`, whose one line names the file.
"""

from __future__ import annotations

import json
import math
from functools import lru_cache
from typing import Annotated, Any, TypeVar

from pydantic import Field, Strict, StringConstraints, TypeAdapter, ValidationError

from pipeline.errors import DamagedError

T = TypeVar("T")
MAX_JSON_BYTES = 64 << 20
MAX_INTEGER_DIGITS = 19  # int64
LONGEST_QUOTE = 60  # characters of a value that a message repeats

Count = Annotated[int, Strict(), Field(ge=0, lt=1 << 62)]
Bool = Annotated[bool, Strict()]
Number = Annotated[float, Field(allow_inf_nan=False, strict=True)]
Text = Annotated[str, StringConstraints(max_length=4096)]
# One name in a folder: no separator, no dot in front, nothing that cannot be seen.
FileName = Annotated[
    str, StringConstraints(max_length=200, pattern=r"^[^./\\\x00-\x1f\x7f][^/\\\x00-\x1f\x7f]*$")
]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Crc32 = Annotated[int, Strict(), Field(ge=0, lt=1 << 32)]


class BadInput(DamagedError):
    """A file that is not what it must be; the message names it, the place in it and the reason."""


def parse_json(
    data: bytes, where: str, most: int = MAX_JSON_BYTES, nan_is_null: bool = False
) -> Any:
    """Parse strict JSON in UTF-8.

    Args:
        where: the file's name, for messages.
        most: bytes allowed.
        nan_is_null: take NaN and Infinity, which earlier versions wrote, as null.

    Raises:
        BadInput: also for duplicate keys, numbers that are not finite or have more than 19 digits,
            lone surrogates, and nesting that is too deep.
    """
    if len(data) > most:
        raise BadInput(f"{where}: {len(data)} bytes; at most {most} are read")
    try:
        text = data.decode("utf-8")
        value = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_constant=_null if nan_is_null else _refuse_constant,
            parse_int=_integer,
            parse_float=_finite,
        )
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except json.JSONDecodeError as error:
        reason = error.msg.removesuffix(" starting at")
        raise BadInput(f"{where}: not valid JSON ({reason} at line {error.lineno})") from None
    except UnicodeDecodeError:
        raise BadInput(f"{where}: not valid JSON (it is not UTF-8)") from None
    except UnicodeEncodeError:
        raise BadInput(f"{where}: not valid JSON (a text holds half a character)") from None
    except RecursionError:
        raise BadInput(f"{where}: not valid JSON (nested too deeply)") from None
    except _Refused as refused:
        raise BadInput(f"{where}: not valid JSON ({refused})") from None
    return value


def validated(kind: type[T], value: Any, where: str) -> T:
    """Make an instance of a type, a dataclass for example, from plain values.

    Raises:
        BadInput: naming the place of the first value that does not fit, and what was expected.
    """
    any_kind: Any = kind
    try:
        made: T = _adapter(any_kind).validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise BadInput(f"{where}: {_described(first)}") from None
    except RecursionError:
        raise BadInput(f"{where}: nested too deeply") from None
    return made


class _Refused(ValueError):
    """JSON that Python would take, and this program does not."""


@lru_cache(maxsize=100)
def _adapter(kind: type[Any]) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _Refused(f"the key {quoted(twice)} is there twice")
    return values


def _refuse_constant(name: str) -> None:
    raise _Refused(f"{name} is not a number of JSON")


def _null(name: str) -> None:
    return None


def _integer(text: str) -> int:
    if len(text.lstrip("-")) > MAX_INTEGER_DIGITS:
        raise _Refused(f"a number of {len(text)} digits")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _Refused(f"the number {quoted(text)} is too large")
    return value


EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "bool_type": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a table of names and values",
    "dataclass_type": "a table of names and values",
    "model_type": "a table of names and values",
    "invalid-json-value": "a number, text, true, false, null, or a list of these",
}


def _described(error: Any) -> str:
    """One of pydantic's errors in words."""
    place, kind, context = _place(error["loc"]), error["type"], error.get("ctx", {})
    if kind == "missing":
        return f"{place} is missing"
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"{place} is unknown"
    if kind == "value_error":
        return f"{place}: {context['error']}"
    if kind == "literal_error":
        expected = f"one of {context['expected']}"
    elif kind == "string_pattern_mismatch":
        expected = _PATTERNS.get(context["pattern"], f"text like {context['pattern']}")
    elif kind in ("string_too_long", "too_long"):
        expected = f"at most {context['max_length']} characters or items"
    elif kind in ("greater_than_equal", "greater_than"):
        expected = f"a number of at least {context.get('ge', context.get('gt'))}"
    elif kind in ("less_than_equal", "less_than"):
        expected = f"a number below {context.get('le', context.get('lt'))}"
    else:
        expected = EXPECTED.get(kind, "another value")
    return f"{place} is {quoted(error['input'])}; expected {expected}"


_PATTERNS = {
    "^[0-9a-f]{64}$": "64 hexadecimal digits",
    r"^[^./\\\x00-\x20\x7f]+$": "a name without dots, slashes, spaces and control characters",
    "^((blur|sharp|radius)[.]npy|json)$": "blur.npy, sharp.npy, radius.npy or json",
    r"^[^./\\\x00-\x1f\x7f][^/\\\x00-\x1f\x7f]*$": "a plain file name",
}


def _place(location: tuple[str | int, ...]) -> str:
    text = ""
    for part in location:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += f".{part}" if text else str(part)
    return text[:200] or "the content"


def quoted(value: Any) -> str:
    """A value as a message may repeat it: as JSON, cut short."""
    try:
        text = json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        text = type(value).__name__
    return text if len(text) <= LONGEST_QUOTE else f"{text[:LONGEST_QUOTE]}..."
