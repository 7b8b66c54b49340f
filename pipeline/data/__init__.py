"""Shards, the order of samples, and the loader that follows it."""
