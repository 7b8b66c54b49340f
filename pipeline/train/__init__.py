"""`era train`: Ray Train runs that survive anything and change nothing."""

from pipeline.train.driver import train

__all__ = ["train"]
