"""Measurements: each compares within one run, prints a table, and is never asserted on in tests."""
