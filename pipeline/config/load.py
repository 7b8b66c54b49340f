"""Loading a configuration: packaged or by path, with ``key=value`` overrides, checked at once."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipeline.config.check import check_train_config
from pipeline.config.schema import TrainConfig
from pipeline.errors import UserError


def config_path(name: str, kind: str) -> Path:
    """Return the file of a configuration: a path as given, or a packaged name such as ``tiny``.

    Args:
        name: a path to a YAML file, or the name of a packaged one.
        kind: ``train`` or ``sweeps``.
    """
    given = Path(name)
    if given.suffix in {".yaml", ".yml"} or given.exists():
        if not given.is_file():
            raise UserError(f"config {name}: no such file; give a path or a packaged name")
        return given
    folder = _packaged_configs() / kind
    packaged = folder / f"{name}.yaml"
    if not packaged.is_file():
        known = ", ".join(sorted(path.stem for path in folder.glob("*.yaml")))
        raise UserError(f"config {name}: no such file and no packaged {kind} config ({known})")
    return packaged


def load_train_config(name: str, overrides: Sequence[str] = ()) -> TrainConfig:
    """Load a training configuration and check every value.

    Raises:
        UserError: for a missing file, bad YAML, an unknown key (with a suggestion) or a bad value.
    """
    path = config_path(name, "train")
    config = build_train_config(read_yaml(path), str(path))
    for override in overrides:
        config = _merge(config, _parse_override(override), f"override {override!r}")
    return finish_train_config(config)


def build_train_config(values: dict[str, Any], where: str) -> DictConfig:
    """Merge plain values into the schema, refusing unknown keys; values are checked later."""
    with _one_line(where):
        return _merge(OmegaConf.structured(TrainConfig), OmegaConf.create(values), where)


def finish_train_config(config: DictConfig) -> TrainConfig:
    """Turn a merged configuration into the typed object and check its values."""
    with _one_line("config"):
        typed = cast(TrainConfig, OmegaConf.to_object(config))
    check_train_config(typed)
    return typed


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping; anything else is the user's error."""
    with _one_line(f"config {path}: not valid YAML"):
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    if not isinstance(values, dict):
        raise UserError(f"config {path}: expected a mapping of keys, got {type(values).__name__}")
    return values


def to_plain(config: TrainConfig) -> dict[str, Any]:
    """Return the configuration as plain dictionaries and lists, in the schema's order."""
    return cast(dict[str, Any], OmegaConf.to_container(OmegaConf.structured(config)))


def _packaged_configs() -> Path:
    installed = Path(__file__).parents[1] / "_configs"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "configs"


def _parse_override(override: str) -> DictConfig:
    key, equals, _ = override.partition("=")
    if not equals or not key.strip():
        raise UserError(f"override {override!r}: expected key=value, such as train.steps=100")
    with _one_line(f"override {override!r}"):
        return OmegaConf.from_dotlist([override])


def _merge(config: DictConfig, values: DictConfig | Any, where: str) -> DictConfig:
    with _one_line(where):
        unknown = next(_unknown_keys(config, values, ""), None)
        if unknown:
            hint = _hint(unknown, list(_all_keys(config, "")))
            raise UserError(f"{where}: unknown key {unknown}; {hint}")
        return cast(DictConfig, OmegaConf.merge(config, values))


def _hint(unknown: str, known: list[str]) -> str:
    if unknown in known:  # a dotted key in a file
        section, _, key = unknown.partition(".")
        return f"in a file, keys are nested: `{section}: {{{key}: ...}}`"
    close = difflib.get_close_matches(unknown, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else "see docs/configuration.md"


@contextmanager
def _one_line(where: str) -> Iterator[None]:
    """Turn what YAML and OmegaConf raise about a user's values into one line."""
    try:
        yield
    except RecursionError:
        raise UserError(f"{where}: a value contains itself") from None
    except (OmegaConfBaseException, yaml.YAMLError, UnicodeDecodeError) as error:
        key = getattr(error, "full_key", None)
        message = " ".join(str(error).split("full_key")[0].split())
        raise UserError(f"{where}: {f'{key}: ' if key else ''}{message}") from None


def _unknown_keys(schema: DictConfig, values: Any, prefix: str) -> Iterator[str]:
    for key in values:
        name = f"{prefix}{key}"
        if key not in schema:
            yield name
        elif name == "model.overrides":  # free here; era.ErAConfig checks its own fields
            continue
        elif OmegaConf.is_dict(values[key]) and OmegaConf.is_dict(schema[key]):
            yield from _unknown_keys(schema[key], values[key], f"{name}.")


def _all_keys(schema: DictConfig, prefix: str) -> Iterator[str]:
    for key in map(str, schema):
        yield f"{prefix}{key}"
        if OmegaConf.is_dict(schema[key]):
            yield from _all_keys(schema[key], f"{prefix}{key}.")
