"""`era evaluate`: scores under a named protocol, and a gallery."""

from pipeline.evaluate.run import Evaluation, evaluate

__all__ = ["Evaluation", "evaluate"]
