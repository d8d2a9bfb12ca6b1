"""Vectors that clients send: finite numbers, of the width of the index, scaled to length 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from pydantic import Discriminator, Field, Tag

from serve.http_errors import ApiError

MAX_WIDTH = 16_384
"""Beyond that of any encoder; what a version takes is its own width."""

Vector = Annotated[
    list[Annotated[float, Field(allow_inf_nan=False)]], Field(min_length=1, max_length=MAX_WIDTH, fail_fast=True)
]

OneOrMoreVectors = Annotated[
    Annotated[Vector, Tag("one")] | Annotated[list[Vector], Field(min_length=1, fail_fast=True), Tag("more")],
    Discriminator(lambda given: "more" if isinstance(given, list) and given and isinstance(given[0], list) else "one"),
]


def as_vectors(given: list[float] | list[list[float]]) -> list[list[float]]:
    """One or more vectors as a list."""
    return [vector for vector in given if isinstance(vector, list)] or [given]  # type: ignore[list-item]


def unit_vectors(given: Sequence[Sequence[float]], width: int, param: str) -> np.ndarray:
    """Vectors (N, D) of a request as the index has them: float32, of length 1.

    Raises:
        ApiError: one has another width, or no direction.
    """
    for vector in given:
        if len(vector) != width:
            raise ApiError(400, f"{param}: a vector of width {len(vector)}; this index has {width}", param=param)
    vector_ND = np.array(given, dtype=np.float64).reshape(len(given), width)
    # By the largest component first: squares of very large or small numbers would be infinite, or 0.
    largest_N1 = np.abs(vector_ND).max(axis=1, keepdims=True)
    if not largest_N1.all():
        raise ApiError(400, f"{param}: a vector of zeros has no direction", param=param)
    vector_ND /= largest_N1
    return np.asarray(vector_ND / np.linalg.norm(vector_ND, axis=1, keepdims=True), dtype=np.float32)
