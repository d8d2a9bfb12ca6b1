"""Memory that was freed, given back to the system: after a large request a replica is as small as before it."""

from __future__ import annotations

import ctypes
import sys


def return_freed_memory() -> None:
    """Where malloc is glibc's, have it return what was freed; takes some milliseconds, without Python's lock.

    By itself glibc returns the end of a heap alone, and each thread may have a heap of its own.
    """
    if not sys.platform.startswith("linux"):
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
