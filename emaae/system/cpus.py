"""The number of CPUs, for programs that should not wait for torch to be imported."""

import os


def n_cpus() -> int:
    """Number of CPUs that this process may use; a job of a cluster has a part of the node's."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
