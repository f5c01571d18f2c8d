"""Number of worker processes for checking and preprocessing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from nnssl.data.raw import RawDataset
from nnssl.data.scans import ScanFacts
from nnssl.errors import UsageError
from nnssl.system.resources import available_cpus, free_memory_bytes

BYTES_A_VOXEL = 8
COPIES = 4  # of the image in double precision: read, normalised, resampled, and one that is being written
PROCESS_BYTES = 300_000_000


def default_processes(raw: RawDataset, facts: Iterable[ScanFacts], spacing_mm: Sequence[float] = ()) -> int:
    """Return a number of processes that fits the CPUs and, by a rough estimate, the free memory.

    Args:
        raw: the data set.
        facts: scans of the data set.
        spacing_mm: voxel size that the scans are resampled to; empty without resampling. With two axes the number of
            slices stays.
    """
    channels = len(raw.channel_names)
    largest = max((_voxels(scan, spacing_mm) for scan in facts), default=0.0)
    a_process = PROCESS_BYTES + (channels + 1) * largest * BYTES_A_VOXEL * COPIES
    free = free_memory_bytes()
    fitting = available_cpus() if free is None else int(free // a_process)
    return max(1, min(available_cpus(), fitting))


def processes_for(given: int | Sequence[int] | None, configurations: Sequence[str]) -> dict[str, int | None]:
    """Return configuration -> number of processes, None for the default.

    Args:
        given: what `-np` gives: one number for all configurations, one for each, or None.
        configurations: names of the configurations.

    Raises:
        UsageError: the count of numbers fits neither one nor all configurations, or a number is below 1.
    """
    numbers = [given] if isinstance(given, int) else list(given or [])
    if any(number < 1 for number in numbers):
        raise UsageError(f"-np must be at least 1, got {' '.join(map(str, numbers))}")
    if not numbers:
        return dict.fromkeys(configurations)
    if len(numbers) == 1:
        numbers *= len(configurations)
    if len(numbers) != len(configurations):
        raise UsageError(
            f"-np has {len(numbers)} numbers for {len(configurations)} configurations",
            where=f"-np {' '.join(map(str, numbers))}",
            run="give one number for all, or one for each configuration of -c",
        )
    return dict(zip(configurations, numbers, strict=True))


def _voxels(scan: ScanFacts, spacing_mm: Sequence[float]) -> float:
    """Return the larger of the numbers of voxels before and after resampling."""
    before = float(np.prod(scan.shape))
    if not spacing_mm:
        return before
    size_mm = sorted(np.multiply(scan.shape, scan.spacing_mm), reverse=True)
    kept = float(min(scan.shape)) if len(spacing_mm) < len(size_mm) else 1.0
    after = float(np.prod(size_mm[: len(spacing_mm)])) / float(np.prod(spacing_mm)) * kept
    return max(before, after)
