"""`make bench`: every benchmark, one after the other."""

from __future__ import annotations

from benchmarks import loader, preprocess, restore, training

for part in (preprocess, loader, training, restore):
    part.main()
