"""What a large data set's manifest costs every process that opens it.

python -m benchmarks.scale
"""

from __future__ import annotations

import subprocess
import sys
import time

from benchmarks.table import machine, markdown, record
from pipeline.data.manifest import Manifest, SampleEntry, Shard, parse_manifest

COUNTS, PER_SHARD = (10_000, 100_000), 5


def manifest(samples: int) -> bytes:
    """A manifest of pairs of 1680x1120 pixels."""
    places = {"blur.npy": (512, 11289728), "sharp.npy": (11290624, 11289728)}
    places["json"] = (22580736, 1500)
    crcs = dict.fromkeys(places, 987654321)
    shards = []
    for number in range(samples // PER_SHARD):
        keys = [f"{number:07d}_{index}" for index in range(PER_SHARD)]
        entries = [SampleEntry(key, 1120, 1680, places, crcs) for key in keys]
        shards.append(Shard(f"shard-{number:05d}.tar", 120_000_000, "a" * 64, entries))
    return Manifest("dpdd", "train", 16, True, False, shards).to_json().encode()


def resident() -> float:
    """GB of memory that this process has now."""
    with open("/proc/self/statm") as stream:  # noqa: PTH123
        return int(stream.read().split()[1]) * 4096 / 1e9


def measure(samples: int) -> None:
    """Print the bytes, CPU seconds and GB of one manifest."""
    data = manifest(samples)
    before, began = resident(), time.process_time()
    parsed = parse_manifest(data, "manifest")
    assert parsed.samples == samples
    print(len(data) / 1e6, time.process_time() - began, resident() - before)


def main() -> None:
    """Measure each in a process of its own and record a table."""
    rows = []
    for count in COUNTS:
        command = [sys.executable, "-m", "benchmarks.scale", str(count)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        rows.append([f"{count:,}", *map(float, done.stdout.split())])
    columns = ["samples", "MB of manifest", "CPU s to parse it", "GB kept in each process"]
    text = f"{machine()}. `python -m benchmarks.scale`.\n\n{markdown(columns, rows)}"
    record("Large data sets", text)


if __name__ == "__main__":
    measure(int(sys.argv[1])) if len(sys.argv) > 1 else main()
