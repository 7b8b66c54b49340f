"""Typed configuration: the schema, loading with overrides, and the frozen/free split."""

from pipeline.config.load import config_path, load_train_config, to_plain
from pipeline.config.schema import FROZEN_SECTIONS, TrainConfig

__all__ = ["FROZEN_SECTIONS", "TrainConfig", "config_path", "load_train_config", "to_plain"]
