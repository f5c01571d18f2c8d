"""The CPUs and the memory that this process may use."""

from __future__ import annotations

import contextlib
import math
import os
import sys
from pathlib import Path

PROCESSES_VARIABLE = "nnUNet_def_n_proc"  # a user of nnU-Net sets the number of worker processes with this variable
NNUNET_PROCESSES = 8  # nnU-Net's number where the variable is not set
CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")
MEMORY_FACTS = Path("/proc/meminfo")
OWN_MEMORY = Path("/proc/self/statm")
MEMORY_EVENTS = Path("/proc/vmstat")


def cpu_count() -> int:
    """Return the number of CPUs that this process may use, at least 1.

    Both limits of a shared machine count: the CPU affinity (cluster schedulers) and the quota of the control group
    (containers).
    """
    try:
        allowed = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS and Windows have no affinity
        allowed = os.cpu_count() or 1
    quota = _cpu_quota()
    return max(1, allowed if quota is None else min(allowed, math.ceil(quota)))


def available_cpus() -> int:
    """Return the number of worker processes that this machine can take, one a CPU; `nnUNet_def_n_proc` overrides it."""
    return _requested_processes() or cpu_count()


def worker_processes() -> int:
    """Return nnU-Net's number of worker processes (`nnUNet_def_n_proc`, else 8), but at most one a CPU."""
    return min(_requested_processes() or NNUNET_PROCESSES, cpu_count())


def free_memory_bytes() -> int | None:
    """Return the memory that new processes can take, None where the system does not say."""
    with contextlib.suppress(OSError):
        for line in MEMORY_FACTS.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def resident_bytes() -> int:
    """Return the memory that this process holds now; where the system does not say, the most it has held."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        pages = int(OWN_MEMORY.read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    return peak_memory_bytes()


def peak_memory_bytes() -> int:
    """Return the most memory that this process has held, 0 where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def oom_kills() -> int | None:
    """Return how many processes the kernel has killed for lack of memory, None where the system does not say."""
    with contextlib.suppress(OSError):
        for line in MEMORY_EVENTS.read_text(encoding="ascii").splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return None


def _requested_processes() -> int | None:
    """Return the number that `nnUNet_def_n_proc` holds, at least 1; None where the variable holds no number."""
    with contextlib.suppress(KeyError, ValueError):
        return max(1, int(os.environ[PROCESSES_VARIABLE]))
    return None


def _cpu_quota() -> float | None:
    """Return the smallest CPU quota of the control groups that hold this process, None without a quota."""
    groups = []
    with contextlib.suppress(OSError, IndexError):
        paths = [line.split(":", 2) for line in OWN_CGROUPS.read_text(encoding="utf-8").splitlines()]
        groups = [CGROUPS / path.lstrip("/") for number, _, path in paths if number == "0"]  # 0: version 2
    folders = [folder for group in groups for folder in (group, *group.parents) if folder.is_relative_to(CGROUPS)]
    limits: list[tuple[Path, ...]] = [(folder / "cpu.max",) for folder in folders]
    limits.append((CGROUPS / "cpu" / "cpu.cfs_quota_us", CGROUPS / "cpu" / "cpu.cfs_period_us"))  # version 1
    quotas = [quota for files in limits if (quota := _read_quota(files)) is not None]
    return min(quotas, default=None)


def _read_quota(files: tuple[Path, ...]) -> float | None:
    """Return the quota in CPUs; None where the files are missing or set no limit (`max`, or -1 in version 1)."""
    with contextlib.suppress(OSError, ValueError):
        used_us, period_us = (float(word) for file in files for word in file.read_text(encoding="ascii").split())
        if used_us > 0 and period_us > 0:
            return used_us / period_us
    return None
