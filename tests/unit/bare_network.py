"""An encoder without DeepSpeed as the network of a training step, which counts what it is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from embedder.models.encoder import PaddedRows, TextEncoder


class BareNetwork:
    """Encodes and takes gradients of one process."""

    lockstep = False

    def __init__(self, encoder: TextEncoder) -> None:
        self.encoder = encoder
        self.encoded = self.backwards = self.most_bytes = 0
        self._kept: dict[int, int] = {}

    def __call__(self, rows: PaddedRows) -> Tensor:
        """Vectors of the rows."""
        self.encoded += len(rows.indices)
        return self.encoder(rows)

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a loss."""
        self.backwards += 1
        loss.backward()
        self._kept.clear()

    @contextmanager
    def counting_bytes(self) -> Iterator[None]:
        """Find the most bytes of activations that are kept for a backward pass at a time."""
        weights = {weight.untyped_storage().data_ptr() for weight in self.encoder.parameters()}

        def keep(value: Tensor) -> Tensor:
            storage = value.untyped_storage()
            if storage.data_ptr() not in weights:
                self._kept[storage.data_ptr()] = storage.nbytes()
                self.most_bytes = max(self.most_bytes, sum(self._kept.values()))
            return value

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
            yield
