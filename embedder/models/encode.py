"""Texts to vectors: the one path for mining, indexing, evaluating and serving.

The same instruction, truncation, pooling and normalisation everywhere, so that an offline vector equals a served one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from embedder.config.tasks import Side, TaskSpec
from embedder.models.encoder import TextEncoder, TokenRow


def encode(encoder: TextEncoder, texts: Sequence[str], task: TaskSpec, side: Side) -> np.ndarray:
    """Unit vectors (len(texts), D), float32, of texts with the task's instruction of that side before them."""
    return encode_prompted(encoder, [task.instruction(side) + text for text in texts])


def encode_prompted(encoder: TextEncoder, texts: Sequence[str]) -> np.ndarray:
    """As `encode`, for texts that already carry their instruction (a served batch mixes tasks)."""
    return encode_tokens(encoder, encoder.tokenize(list(texts)) if texts else [])


def encode_tokens(encoder: TextEncoder, rows: list[TokenRow]) -> np.ndarray:
    """As `encode_prompted`, for texts that are token ids already (a server counts them first)."""
    if not rows:
        return np.zeros((0, encoder.dimension), dtype=np.float32)
    with torch.inference_mode():
        vectors: np.ndarray = encoder(rows).float().cpu().numpy()
    return vectors
