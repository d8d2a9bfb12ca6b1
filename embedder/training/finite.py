"""Numbers that are not finite end a training: in one line that names step, tasks and rows, and nothing is exported."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from embedder.errors import NotFiniteError

SHOWN = 5
"""Queries that a message names."""


def not_finite(what: str, step: int, tasks: Collection[str], queries: Sequence[str]) -> NotFiniteError:
    """The error of a step, counted from 0 and named from 1, in whose batch these queries stood."""
    more = f" and {len(queries) - SHOWN} more" if len(queries) > SHOWN else ""
    return NotFiniteError(
        f"step {step + 1}: {what} is not finite; tasks {', '.join(sorted(tasks))}, queries {', '.join(queries[:SHOWN])}"
        f"{more}. Nothing is exported, checkpoints from before stay: lower train.learning_rate, or correct these rows"
    )


def first_damaged(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor with a value that is not finite."""
    return next((name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())), None)
