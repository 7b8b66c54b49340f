"""The distributed pipeline around the method: data, training, sweeps, evaluation, restoration."""

import os

__version__ = "0.1.0"

# Huge pages for large tensors, where the kernel leaves that to programs: restoring takes a sixth
# less time (benchmarks/RESULTS.md). torch reads this once.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
