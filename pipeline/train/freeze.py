"""The frozen part of a run's configuration, under the name that `era train` gives it."""

from pipeline.runfolder import freeze, frozen_hash, frozen_part

__all__ = ["freeze", "frozen_hash", "frozen_part"]
