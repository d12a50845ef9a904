"""Memory of the C library: how much of what is freed is kept for the next step, and when it is returned."""

import ctypes
import sys
from typing import Any

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's `mallopt` (malloc.h)."""

KEPT = 512 << 20
"""Bytes free at the end of the heap from which on glibc returns them to the system."""

LARGE = 32 << 20
"""Bytes from which on a block is mapped by itself: glibc's highest value, which it reaches on its own."""


def keep_freed_memory() -> bool:
    """Let glibc keep half a gigabyte that is freed, where by default it returns all but twice the largest block.

    A forward pass frees its activations and takes as many again, and the system clears returned pages one by one: on a
    CPU that costs an evaluation a fifth of its time.

    Returns:
        Whether the C library has these settings.
    """
    library = _glibc()
    return library is not None and bool(
        library.mallopt(M_MMAP_THRESHOLD, LARGE) and library.mallopt(M_TRIM_THRESHOLD, KEPT)
    )


def return_freed_memory() -> None:
    """Return everything that is free to the system, also between blocks that are used.

    Without this, models that are loaded one after the other take the memory of several: what one leaves lies in pieces
    that the next one does not fit into.
    """
    if library := _glibc():
        library.malloc_trim(0)


def _glibc() -> Any:
    """Return the C library if it is glibc, which has both functions."""
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None
