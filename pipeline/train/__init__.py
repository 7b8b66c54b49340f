"""`era train`: Ray Train runs that survive anything and change nothing."""

from pipeline.train.driver import Stopped, train

__all__ = ["Stopped", "train"]
