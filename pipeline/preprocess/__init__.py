"""`era preprocess`: data sets as they are published become verified, reproducible shards."""

from pipeline.preprocess.layouts import DATASETS
from pipeline.preprocess.run import preprocess

__all__ = ["DATASETS", "preprocess"]
