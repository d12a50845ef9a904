"""Memory of the C library: what is freed is kept for the next step."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's `mallopt` (malloc.h)."""

LARGEST = 1 << 30
"""Blocks of up to so many bytes are taken from what was freed."""


def keep_freed_memory() -> bool:
    """Let glibc take large blocks from memory that was freed before; by default it maps blocks above 32 MB anew.

    The system clears new pages one by one, which costs a training step on a CPU about a sixth of its time. The memory
    at the highest is the same.

    Returns:
        Whether the C library has this setting.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    return mallopt is not None and bool(
        mallopt(M_MMAP_THRESHOLD, LARGEST) and mallopt(M_TRIM_THRESHOLD, 2 * LARGEST - 1)
    )
