"""Texts to vectors: the one path for mining, indexing, evaluating and serving.

The same instruction, truncation, pooling and normalisation everywhere, so that an offline vector equals a served one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from embedder.model import TextEncoder
from embedder.tasks import Side, TaskSpec


def encode(encoder: TextEncoder, texts: Sequence[str], task: TaskSpec, side: Side) -> np.ndarray:
    """Unit vectors (len(texts), D), float32, of texts with the task's instruction of that side before them."""
    return encode_prompted(encoder, [task.instruction(side) + text for text in texts])


def encode_prompted(encoder: TextEncoder, texts: Sequence[str]) -> np.ndarray:
    """As `encode`, for texts that already carry their instruction (a served batch mixes tasks)."""
    if not texts:
        return np.zeros((0, encoder.dimension), dtype=np.float32)
    with torch.inference_mode():
        vectors: np.ndarray = encoder(encoder.tokenize(list(texts))).float().cpu().numpy()
    return vectors
