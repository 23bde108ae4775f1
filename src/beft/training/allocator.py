"""Freed memory kept by the process: what every training step frees and asks for again is not given back in between."""

from __future__ import annotations

import ctypes
import functools
import os
import sys

TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3
"""Numbers of glibc's `mallopt` parameters (malloc.h)."""
KEPT = 1 << 30
"""Bytes: freed memory up to this is kept, and blocks up to this come from it."""
STRIDE = 64 << 20
"""Bytes by which the process grows."""
SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES")
"""Environment variables by which a user sets the same; then nothing is done here."""


@functools.cache
def keep_freed_memory() -> bool:
    """Have glibc keep what is freed, up to a gigabyte, once a process; whether it does.

    A micro-batch's activations are megabytes each. glibc returns such blocks to the system when they are freed, and
    the next ones come as fresh pages, each filled with zeros at its first touch: 5 to 8 % of a training step on a CPU
    (docs/performance.md). Another allocator, another system, or settings of the user's own are left alone.
    """
    if not sys.platform.startswith("linux") or any(name in os.environ for name in SETTINGS):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # musl has none
        return False
    wanted = ((TRIM_THRESHOLD, KEPT), (TOP_PAD, STRIDE), (MMAP_THRESHOLD, KEPT))
    return all(mallopt(parameter, value) == 1 for parameter, value in wanted)


def give_back() -> None:
    """Return freed memory to the system after all, where glibc holds it."""
    if keep_freed_memory.cache_info().currsize and keep_freed_memory():
        ctypes.CDLL(None).malloc_trim(0)
