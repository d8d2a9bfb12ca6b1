"""A Ray that starts on this machine: what keeps it from starting is one line."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from embedder.errors import ClusterError


@contextmanager
def starting_ray() -> Iterator[None]:
    """Around `ray.init` where it starts a Ray.

    Raises:
        ClusterError: it did not start.
    """
    # Its line on tokens advises to switch them off.
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    try:
        yield
    except OSError:
        raise
    # All of them, because Ray raises a bare Exception for a node that is not up after 30 s.
    except Exception as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise ClusterError(
            f"Ray did not start on this machine ({reason}); start again when fewer programs run here and memory is "
            "free, see its logs in /tmp/ray/session_latest/logs, or set RAY_ADDRESS to a Ray that runs"
        ) from error
