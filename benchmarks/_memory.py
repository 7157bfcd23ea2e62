"""The memory of this process. Imports neither torch nor jax, whose own memory is not to be counted."""

from __future__ import annotations

import resource
from pathlib import Path

_STATUS = Path("/proc/self/status")


def peak_resident_mb() -> float:
    """The largest resident set so far. getrusage would start from the parent's: Linux hands it on to children."""
    if _STATUS.exists():
        return _status("VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def resident_mb() -> float:
    """The resident set now; where the system does not tell, the largest so far."""
    return _status("VmRSS") if _STATUS.exists() else peak_resident_mb()


def forget_peak() -> None:
    """Let the largest resident set start anew from the present one, where the system can (Linux)."""
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5", encoding="ascii")


def _status(field: str) -> float:
    (line,) = (line for line in _STATUS.read_text(encoding="utf-8").splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1e3
