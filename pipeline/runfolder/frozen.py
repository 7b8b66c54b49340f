"""The part of a configuration that a run cannot change, kept in its `config.yaml`."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import yaml

from pipeline import storage
from pipeline.config import FROZEN_SECTIONS, TrainConfig, parse_train_config, to_plain
from pipeline.errors import UserError
from pipeline.runfolder.names import CONFIG


def frozen_part(config: TrainConfig) -> dict[str, Any]:
    """The sections that define the result, as plain values."""
    plain = to_plain(config)
    return {section: plain[section] for section in FROZEN_SECTIONS}


def free_part(config: TrainConfig) -> dict[str, Any]:
    """The sections that may change between attempts."""
    plain = to_plain(config)
    return {k: v for k, v in plain.items() if k not in FROZEN_SECTIONS and k != "run"}


def frozen_hash(config: TrainConfig) -> str:
    """sha256 of the frozen part; equal for equal values, however they were written."""
    text = json.dumps(frozen_part(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def freeze(run_url: str, config: TrainConfig) -> None:
    """Write `config.yaml` at a run's first start; afterwards, refuse a different frozen part.

    Raises:
        UserError: naming every frozen key that differs, with both values.
    """
    if not has_begun(run_url, config):
        text = yaml.safe_dump(to_plain(config), sort_keys=False)
        url = storage.join(run_url, CONFIG)
        parse_train_config(text, url)  # or the run could never be opened again
        storage.create(url, text.encode())
        has_begun(run_url, config)  # another command may have begun it just now


def has_begun(run_url: str, config: TrainConfig) -> bool:
    """Whether a run has begun, with this frozen part. Writes nothing.

    Raises:
        UserError: if it began with another one, naming every key that differs, with both values.
    """
    url = storage.join(run_url, CONFIG)
    if not storage.exists(url):
        others = [name for name in storage.list_names(run_url) if not name.startswith(".")]
        if others:
            raise UserError(
                f"run {run_url}: the folder holds {others[0]} but no {CONFIG}; "
                "choose another run.name"
            )
        return False
    changes = differences(frozen_part(load_frozen(url)), frozen_part(config))
    if changes:
        raise UserError(
            f"run {run_url}: it began with other settings: {'; '.join(changes)}. "
            "Choose another run.name, or go back to the old values"
        )
    return True


def load_frozen(url: str) -> TrainConfig:
    """Read a run's `config.yaml`.

    Raises:
        UserError: if it is not a configuration that this version knows.
    """
    return parse_train_config(storage.read_text(url), url)


def differences(old: Any, new: Any, prefix: str = "") -> list[str]:
    """The keys of two plain configurations that differ, with both values."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = dict.fromkeys([*old, *new])
        parts = [differences(old.get(k), new.get(k), f"{prefix}.{k}".lstrip(".")) for k in keys]
        return [line for part in parts for line in part]
    return [] if old == new else [f"{prefix}: {old} -> {new}"]
