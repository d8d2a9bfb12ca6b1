"""Memory of a replica: what is searched for garbage, and what is given back to the system."""

from __future__ import annotations

import ctypes
import gc
import sys


def pass_over_imported() -> None:
    """Have Python never search again what is there now; once in a process, before models and indexes are loaded.

    A search stops the whole process. Of half a million objects, which torch, Ray and what they import make, each search
    through all of them took a third of a second, and large requests bring it about. Models and indexes are left to be
    searched, so that what is unloaded is found where it refers to itself.
    """
    if gc.get_freeze_count():
        return
    # First, because what is garbage now would stay for ever.
    gc.collect()
    gc.freeze()


def return_freed_memory() -> None:
    """Where malloc is glibc's, have it return what was freed; takes some milliseconds, without Python's lock.

    By itself glibc returns the end of a heap alone, and each thread may have a heap of its own.
    """
    if not sys.platform.startswith("linux"):
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
