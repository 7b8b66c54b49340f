"""`era tune`: sweeps of training runs, each with its own workers, checkpoints and resumption."""

from pipeline.tune.run import tune

__all__ = ["tune"]
