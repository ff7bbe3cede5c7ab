"""The CPUs that this process may use."""

import contextlib
import math
import os
from pathlib import Path


def usable_cpus() -> int:
    """The number of CPUs in this process's affinity mask, limited by the quota of its control group; at least 1."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(allowed, quota())))


def quota(groups: Path = Path("/sys/fs/cgroup"), process: Path = Path("/proc/self/cgroup")) -> float:
    """The smallest quota, in CPUs, of this process's control group and those above it; infinity without a quota.

    Args:
        groups: the folder in which control groups of version 2 are mounted.
        process: the file that names the groups of this process.
    """
    least, group = math.inf, groups
    with contextlib.suppress(OSError):
        group = groups / next((line[4:] for line in process.read_text().splitlines() if line.startswith("0::/")), "")
    for folder in (group, *group.parents):
        with contextlib.suppress(OSError, ValueError):  # "max 100000" has no number of microseconds
            microseconds, period = map(int, (folder / "cpu.max").read_text().split())
            least = min(least, microseconds / period)
        if folder == groups:
            break
    return least
