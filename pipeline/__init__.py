"""The distributed pipeline around the method: data, training, sweeps, evaluation, restoration."""

__version__ = "0.1.0"
