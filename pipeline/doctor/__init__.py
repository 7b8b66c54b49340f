"""`era doctor`: checks for obstacles to a run; each finding comes with its cure."""

from pipeline.doctor.finding import Finding
from pipeline.doctor.run import diagnose

__all__ = ["Finding", "diagnose"]
