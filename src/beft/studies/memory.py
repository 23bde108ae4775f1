"""Peak memory of one cell among many in a process: the high-water mark is put back before each."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from pathlib import Path

import torch

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def forget_peak_memory() -> bool:
    """Free what earlier cells left and put the mark back; False where this system has no such mark to put back."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # glibc alone has it: freed memory goes back to the system
        ctypes.CDLL(None).malloc_trim(0)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return True
    try:
        _RESET.write_text("5")  # Linux: the peak of resident memory becomes what is resident now
        return _STATUS.exists()
    except OSError:
        return False


def peak_memory() -> float:
    """Most memory since the mark was put back, in MiB: of the GPU if there is one, else resident in this process."""
    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 2**20, 1)
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
    return round(int(line.split()[1]) / 2**10, 1)
