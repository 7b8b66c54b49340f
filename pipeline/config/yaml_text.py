"""YAML of unknown origin: bounded, without tags and duplicate keys, every error in one line.

`parse_yaml` returns nodes that still have the text as it was written, so that the schema's type
decides what `2024_01_01` or `no` means; `plain_value` reads a node without a schema.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from pipeline.errors import UserError

MAX_BYTES, MAX_NODES, MAX_DEPTH = 256 * 1024, 10_000, 20
TAG = "tag:yaml.org,2002:"
LINE_ENDS = re.compile("[\x85\u2028\u2029]")
HALF_CHARACTER = re.compile("[\ud800-\udfff]")  # of UTF-16: a lone surrogate


def inline(value: Any) -> str:
    """A plain value in one line of YAML: JSON, in which no character is cut into halves, and none
    that YAML takes for the end of a line stands by itself."""
    text = json.dumps(value, ensure_ascii=False)
    return LINE_ENDS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


class _Loader(yaml.SafeLoader):
    """Scalars as in YAML 1.2's core schema: `no` and `2024-01-01` are text, `1e-3` is a number."""

    yaml_implicit_resolvers = {}  # noqa: RUF012  (as PyYAML declares it)


NUMBER = r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
for _kind, _pattern in (
    ("null", r"~|null|Null|NULL|"),
    ("bool", r"true|True|TRUE|false|False|FALSE"),
    ("int", r"[-+]?[0-9]+"),
    ("float", rf"{NUMBER}|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"),
):
    _Loader.add_implicit_resolver(TAG + _kind, re.compile(rf"^(?:{_pattern})$"), None)


def read_yaml_file(path: Path) -> MappingNode:
    """Read a YAML file whose top level is a mapping.

    Raises:
        UserError: if it can't be read, is too large or is not such a file.
    """
    where = f"config {path}"
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        text = data.decode("utf-8")
    except OSError as error:
        raise UserError(f"{where}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not valid YAML: byte {error.start} is not UTF-8") from None
    return parse_mapping(text, where)


def parse_mapping(text: str, where: str) -> MappingNode:
    """Parse a YAML text whose top level is a mapping; an empty text is an empty mapping."""
    node = parse_yaml(text, where)
    if node is None or (isinstance(node, ScalarNode) and node.tag == f"{TAG}null"):
        return MappingNode(f"{TAG}map", [])
    if not isinstance(node, MappingNode):
        kind = "a list" if isinstance(node, SequenceNode) else "a single value"
        raise UserError(f"{where}: expected a mapping of keys, got {kind}")
    return node


def parse_yaml(text: str, where: str) -> Node | None:
    """Parse one YAML document; None if it is empty.

    Args:
        text: at most `MAX_BYTES` long; at most `MAX_NODES` values with aliases expanded, nested at
            most `MAX_DEPTH` deep.
        where: names the source in messages.

    Raises:
        UserError: for bad syntax, a tag, a key given twice, a lone surrogate, or a text beyond
            these bounds.
    """
    if len(text) > MAX_BYTES:
        raise UserError(f"{where}: larger than {MAX_BYTES // 1024} KiB")
    try:
        _check_events(text)
        node: Node | None = yaml.compose(text, Loader=_Loader)
        if node is not None:
            _check_keys(node)
    except yaml.MarkedYAMLError as error:
        problem = " ".join(filter(None, (error.context, error.problem)))
        raise UserError(f"{where}: not valid YAML: {problem}{_place(error)}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{where}: not valid YAML: {' '.join(str(error).split())}") from None
    return node


def plain_value(node: Node) -> Any:
    """A node as None, bool, int, float, str, list or dict.

    Raises:
        ValueError: for a whole number of thousands of digits.
    """
    if isinstance(node, MappingNode):
        return {key.value: plain_value(value) for key, value in node.value}
    if isinstance(node, SequenceNode):
        return [plain_value(value) for value in node.value]
    text = str(node.value)
    match node.tag.removeprefix(TAG):
        case "null":
            return None
        case "bool":
            return text.lower() == "true"
        case "int":
            return int(text)
        case "float":
            return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return text


def _check_events(text: str) -> None:
    """Bound the document before anything is built from it; refuse tags and recursion."""
    total, depth = 0, 0
    sizes: dict[str, int] = {}  # of each anchored value, in values
    opened: list[tuple[str | None, int]] = []
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.AliasEvent):
            if any(anchor == event.anchor for anchor, _ in opened):
                raise _error("a value contains itself", event)
            total += sizes.get(str(event.anchor), 1)
        elif isinstance(event, yaml.NodeEvent):
            total += 1
            if getattr(event, "tag", None) not in (None, "!"):
                raise _error("tags (!) are not allowed", event)
        if isinstance(event, yaml.ScalarEvent) and HALF_CHARACTER.search(event.value):
            raise _error("a text holds half a character", event)
        if isinstance(event, yaml.CollectionStartEvent):
            opened.append((event.anchor, total))
            depth = max(depth, len(opened))
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, start = opened.pop()
            if anchor:
                sizes[anchor] = total - start + 1
        if total > MAX_NODES:
            raise _error(f"more than {MAX_NODES} values, aliases included", event)
        if depth > MAX_DEPTH:
            raise _error(f"nested more than {MAX_DEPTH} deep", event)


def _check_keys(node: Node) -> None:
    """Keys are text, and each is given once."""
    if isinstance(node, SequenceNode):
        for item in node.value:
            _check_keys(item)
    elif isinstance(node, MappingNode):
        seen = set()
        for key, value in node.value:
            if not isinstance(key, ScalarNode):
                raise _error("a key must be a single word", key)
            if key.value in seen:
                raise _error(f"the key {key.value!r} is given twice", key)
            seen.add(key.value)
            _check_keys(value)


def _error(problem: str, at: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=at.start_mark)


def _place(error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    return f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
