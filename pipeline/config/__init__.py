"""Typed configuration: the schema, loading with overrides, and the frozen/free split."""

from pipeline.config.load import (
    config_path,
    load_train_config,
    parse_plain,
    parse_train_config,
    to_plain,
)
from pipeline.config.schema import FROZEN_SECTIONS, TrainConfig
from pipeline.config.values import Deterministic, Workers

__all__ = [
    "FROZEN_SECTIONS",
    "Deterministic",
    "TrainConfig",
    "Workers",
    "config_path",
    "load_train_config",
    "parse_plain",
    "parse_train_config",
    "to_plain",
]
