"""Python's search for garbage passes over what is imported, and stops a replica for milliseconds only.

Nothing else runs in a process meanwhile. Of half a million objects, which torch, Ray and what they import make, each
search through all of them took a third of a second, and large requests bring it about.
"""

from __future__ import annotations

import gc


def pass_over_imported() -> None:
    """Never search again what is there now; once in a process, before models and indexes are loaded.

    Those are left to be searched, so that what is unloaded is found where it refers to itself.
    """
    if gc.get_freeze_count():
        return
    # First, because what is garbage now would stay for ever.
    gc.collect()
    gc.freeze()
