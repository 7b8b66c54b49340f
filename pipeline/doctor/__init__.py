"""`era doctor`: what stands in the way of a run, each finding with its cure."""

from pipeline.doctor.checks import Finding, diagnose

__all__ = ["Finding", "diagnose"]
