"""`era doctor`: what stands in the way of a run, each finding with its cure."""

from pipeline.doctor.finding import Finding
from pipeline.doctor.run import diagnose

__all__ = ["Finding", "diagnose"]
