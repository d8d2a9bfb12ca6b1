"""A batch that does not fit into memory is halved, or its items are worked on one by one; what fitted is remembered."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")

NO_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "failed to allocate memory",
    "bad_alloc",
    "alloc_failed",
    "allocation_failed",
    "cublas_status_not_initialized when calling `cublascreate",
)
"""Words of a failed allocation, in small letters, for which a plain RuntimeError is raised: on a CPU, by the CUDA
driver, cuBLAS (which cannot begin without memory), cuDNN, Triton and ONNX Runtime."""


def is_memory_error(error: BaseException) -> bool:
    """Tell whether memory was short, in whatever words torch and the libraries below it say so."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(mark in text for mark in NO_MEMORY)


@contextmanager
def one_memory_error() -> Iterator[None]:
    """Raise `torch.OutOfMemoryError` for every kind of failed allocation."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, torch.OutOfMemoryError) or not is_memory_error(error):
            raise
        raise torch.OutOfMemoryError(str(error)) from error


class BatchLimit:
    """The largest batch of one kind of work that memory has room for, as far as this process has learnt it."""

    def __init__(self, work: str, unit: str = "tokens") -> None:
        """`work` names it in the log and the report, such as "encoding"."""
        self.work, self.unit = work, unit
        self.most: int | None = None
        """None: every batch has fitted so far."""

    def exceeded(self, size: int) -> bool:
        """Tell whether a batch of that size would fail, as one before it did."""
        return self.most is not None and size > self.most

    def lower(self, size: int) -> None:
        """Half of that size is tried at most from now on, because a batch of it has failed."""
        half = max(1, size // 2)
        self.most = half if self.most is None else min(self.most, half)
        logger.warning("%s: %d %s at once do not fit into memory; %d are tried", self.work, size, self.unit, self.most)

    def told(self) -> str | None:
        """A line for the report, if a batch did not fit."""
        if self.most is None:
            return None
        return f"{self.work}: memory was short, so batches were cut to {self.most:,} {self.unit}"


def halving_on_memory_error(
    function: Callable[[list[Item]], list[Result]],
    batch: list[Item],
    limit: BatchLimit | None = None,
    size: Callable[[list[Item]], int] = len,
) -> list[Result]:
    """A result an item; a batch that does not fit into memory is cut in two, down to one item.

    Args:
        limit: Remembers what did not fit, so that the next batch of such a size is cut before it fails.
        size: What a batch takes, in the unit of the limit.

    Raises:
        torch.OutOfMemoryError: a single item does not fit.
    """
    taken = size(batch)
    if len(batch) == 1 or limit is None or not limit.exceeded(taken):
        try:
            with one_memory_error():
                return function(batch)
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                raise
        # Outside `except`, because until its end the error's traceback keeps the tensors of the failed batch alive. The
        # cache is emptied because its free blocks are cut to the sizes of the larger batch.
        torch.cuda.empty_cache()
        if limit is not None:
            limit.lower(taken)
    half = len(batch) // 2
    return [
        result
        for part in (batch[:half], batch[half:])
        for result in halving_on_memory_error(function, part, limit, size)
    ]


def apart_on_memory_error(function: Callable[[list[Item]], None], items: list[Item]) -> Iterator[tuple[Item, str]]:
    """Work on all items together, or one by one if that exhausts the memory; yield those that do so alone, and why."""
    try:
        function(items)
        return
    except torch.OutOfMemoryError as error:
        reason = f"out of memory: {str(error).partition(chr(10))[0]}"
    # Outside of the `except`, because the error's traceback holds the tensors that fill the memory.
    if len(items) == 1:
        yield items[0], reason
    else:
        for item in items:
            yield from apart_on_memory_error(function, [item])
