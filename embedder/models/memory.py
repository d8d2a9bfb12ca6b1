"""A batch that does not fit into memory is halved, or its items are worked on one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

NO_MEMORY = ("can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""Words of a failed allocation for which torch raises a plain RuntimeError: on a CPU, and in cuBLAS."""


@contextmanager
def one_memory_error() -> Iterator[None]:
    """Raise `torch.OutOfMemoryError` for every kind of failed allocation."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or not any(mark in str(error) for mark in NO_MEMORY):
            raise
        raise torch.OutOfMemoryError(str(error)) from error


def halving_on_memory_error(function: Callable[[list[Item]], list[Result]], batch: list[Item]) -> list[Result]:
    """A result an item; a batch that does not fit into memory is cut in two, down to one item.

    Raises:
        torch.OutOfMemoryError: a single item does not fit.
    """
    try:
        with one_memory_error():
            return function(batch)
    except torch.OutOfMemoryError:
        if len(batch) == 1:
            raise
    # Outside `except`, because until its end the error's traceback keeps the tensors of the failed batch alive. The
    # cache is emptied because its free blocks are cut to the sizes of the larger batch.
    torch.cuda.empty_cache()
    half = len(batch) // 2
    return halving_on_memory_error(function, batch[:half]) + halving_on_memory_error(function, batch[half:])


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
