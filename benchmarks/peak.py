"""Peak memory of this process, for benchmarks that start themselves anew to measure it."""

import re
from pathlib import Path


def own_peak_mib() -> float:
    """Peak resident memory in MiB (Linux). Not getrusage: its peak counts the process that started this one."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None, "this kernel tells no VmHWM"
    return int(found[1]) / 1024
