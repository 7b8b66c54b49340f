"""`make bench`: every benchmark, one after the other."""

from __future__ import annotations

from benchmarks import loader, restore, training

for part in (loader, training, restore):
    part.main()
