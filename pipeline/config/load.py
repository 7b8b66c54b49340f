"""Loading a configuration: packaged or by path, with ``key=value`` overrides, checked at once."""

from __future__ import annotations

import difflib
import functools
import os
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

from yaml.nodes import MappingNode, Node, ScalarNode

from pipeline.config.check import check_train_config
from pipeline.config.schema import TrainConfig
from pipeline.config.values import READERS, Deterministic, Workers
from pipeline.config.yaml_text import TAG, parse_mapping, parse_yaml, plain_value, read_yaml_file
from pipeline.errors import UserError

Settings = dict[str, dict[str, Any]]  # section -> key -> typed value
FREE = "model.overrides"  # era.ErAConfig checks its own fields
SHOWN = 80  # characters of a value that a message repeats


def config_path(name: str, kind: str) -> Path:
    """Return the file of a configuration: a path as given, or a packaged name such as ``tiny``.

    Args:
        name: a path to a YAML file, or the name of a packaged one.
        kind: ``train`` or ``sweeps``.

    Raises:
        UserError: if there is no such file.
    """
    given = Path(name)
    try:
        # A folder of a packaged name, such as of a run, is not meant.
        if given.suffix in {".yaml", ".yml"} or given.is_file() or ("/" in name and given.exists()):
            if not given.is_file():
                what = "no regular file" if given.exists() else "no such file"
                raise UserError(f"config {name}: {what}; give a path or a packaged name")
            return given
    except (OSError, ValueError):  # too long for a file name, or with a NUL in it
        raise UserError(f"config {_shown(name)}: not a file name") from None
    packaged = {path.stem: path for path in (_packaged_configs() / kind).glob("*.yaml")}
    if name not in packaged:
        known = ", ".join(sorted(packaged))
        raise UserError(
            f"config {_shown(name)}: no such file and no packaged {kind} config ({known})"
        )
    return packaged[name]


def load_train_config(name: str | os.PathLike[str], overrides: Sequence[str] = ()) -> TrainConfig:
    """Load a training configuration and check every value.

    Args:
        name: a path, the name of a packaged configuration, or the configuration itself as JSON.
        overrides: `key=value` each, applied in this order.

    Raises:
        UserError: for a missing file, bad YAML, an unknown key (with a suggestion) or a bad value.
    """
    settings: Settings = {}
    _merge(settings, *_read_config(os.fspath(name), "train"))
    for override in overrides:
        _merge_override(settings, override)
    return _finish(settings)


def parse_train_config(text: str, where: str) -> TrainConfig:
    """Load a training configuration from the text of its file; `where` names it in messages.

    Raises:
        UserError: as `load_train_config`.
    """
    settings: Settings = {}
    _merge(settings, parse_mapping(text, where), where)
    return _finish(settings)


def read_plain(name: str, kind: str) -> tuple[dict[str, Any], str]:
    """Read a configuration without a schema; returns plain values and its name for messages.

    Args:
        name: a path, the name of a packaged configuration, or the configuration itself as JSON.
        kind: ``train`` or ``sweeps``.

    Raises:
        UserError: if it can't be read or is not a YAML mapping within bounds.
    """
    node, where = _read_config(name, kind)
    return _plain_mapping(node, where), where


def parse_plain(text: str, where: str) -> dict[str, Any]:
    """Parse a YAML mapping without a schema, as plain values; `where` names it in messages.

    Raises:
        UserError: if it is not a YAML mapping within bounds.
    """
    return _plain_mapping(parse_mapping(text, where), where)


def _read_config(name: str, kind: str) -> tuple[MappingNode, str]:
    if is_inline(name):
        return parse_mapping(name, "--config {...}"), "--config {...}"
    path = config_path(name, kind)
    return read_yaml_file(path), f"config {path}"


def is_inline(name: str) -> bool:
    """Whether `--config` holds the configuration itself: how `era submit` sends a file."""
    return name.startswith("{")


def _plain_mapping(node: MappingNode, where: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = plain_value(node)
    except ValueError:
        raise UserError(f"{where}: a whole number is too long") from None
    return found


def to_plain(config: TrainConfig) -> dict[str, Any]:
    """Return the configuration as plain dictionaries and lists, in the schema's order."""
    return {
        section.name: {
            field.name: _plain(getattr(getattr(config, section.name), field.name))
            for field in fields(getattr(config, section.name))
        }
        for section in fields(config)
    }


def _plain(value: Any) -> Any:
    if isinstance(value, (Workers, Deterministic)):
        return value.to_plain()
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


def _finish(settings: Settings) -> TrainConfig:
    sections = get_type_hints(TrainConfig)
    config = TrainConfig(**{name: sections[name](**keys) for name, keys in settings.items()})
    check_train_config(config)
    return config


@functools.cache
def _types() -> dict[str, Any]:
    """The type of every key: `section.key` -> type."""
    return {
        f"{section}.{key}": kind
        for section, owner in get_type_hints(TrainConfig).items()
        for key, kind in get_type_hints(owner).items()
    }


def _packaged_configs() -> Path:
    installed = Path(__file__).parents[1] / "_configs"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "configs"


def _merge(settings: Settings, node: MappingNode, where: str) -> None:
    """Read a file's sections over what is set already."""
    sections = {name.partition(".")[0] for name in _types()}
    for section, keys in node.value:
        if section.value not in sections:
            raise UserError(f"{where}: unknown key {_shown(section.value)}; {_hint(section.value)}")
        if not isinstance(keys, MappingNode):
            if isinstance(keys, ScalarNode) and keys.tag == f"{TAG}null":
                continue
            raise UserError(f"{where}: {section.value}: expected a mapping of keys{_line(keys)}")
        for key, value in keys.value:
            _set(settings, f"{section.value}.{key.value}", value, where)


def _merge_override(settings: Settings, override: str) -> None:
    where = f"override {_shown(override)!r}"
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not key:
        raise UserError(f"{where}: expected key=value, such as train.steps=100")
    kind = _types().get(key)
    node: Node | None
    if kind is str and not _is_quoted(text):
        node = ScalarNode(f"{TAG}str", text)
    else:
        node = parse_yaml(text, where) or ScalarNode(f"{TAG}null", "")
    if key.startswith(f"{FREE}."):
        for part in reversed(key.removeprefix(f"{FREE}.").split(".")):
            node = MappingNode(f"{TAG}map", [(ScalarNode(f"{TAG}str", part), node)])
        key = FREE
    elif isinstance(node, MappingNode) and key in {name.partition(".")[0] for name in _types()}:
        _merge(settings, MappingNode("", [(ScalarNode("", key), node)]), where)
        return
    _set(settings, key, node, where)


def _set(settings: Settings, name: str, node: Node, where: str) -> None:
    """Read one value by its key's type."""
    kind = _types().get(name)
    if kind is None:
        raise UserError(f"{where}: unknown key {_shown(name)}; {_hint(name)}")
    try:
        value = READERS[kind](node)
    except ValueError as error:  # also Python's own, of a number too long for it
        written = f", got {_shown(node.value)!r}" if isinstance(node, ScalarNode) else ""
        raise UserError(f"{where}: {name}: {error}{written}{_line(node)}") from None
    section, _, key = name.partition(".")
    keys = settings.setdefault(section, {})
    keys[key] = {**keys.get(key, {}), **value} if name == FREE else value


def _hint(unknown: str) -> str:
    known = [*_types(), *dict.fromkeys(name.partition(".")[0] for name in _types())]
    section, _, key = unknown.partition(".")
    if unknown in known and not key:
        inside = next(name for name in known if name.startswith(f"{section}."))
        return f"it is a section; its keys are given as {inside}=..."
    if unknown in known:  # a dotted key in a file
        return f"in a file, keys are nested: `{section}: {{{key}: ...}}`"
    above = unknown.rpartition(".")[0]
    if _types().get(above) == tuple[int, ...]:
        return f"give the whole list: {above}=[96, 128]"
    close = difflib.get_close_matches(unknown[:SHOWN], known, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else "see docs/configuration.md"


def _is_quoted(text: str) -> bool:
    return len(text) >= 2 and text[0] == text[-1] and text[0] in "\"'"


def _shown(text: str) -> str:
    text = text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _line(node: Node) -> str:
    return f" (line {node.start_mark.line + 1})" if node.start_mark else ""
