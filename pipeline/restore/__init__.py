"""`era restore`: photographs in, restored photographs of the same kind out."""

from pipeline.restore.run import restore

__all__ = ["restore"]
