"""An encoder on a GPU: number format, masks and layers. What could go wrong is compared before it is used."""

from __future__ import annotations

import logging

import numpy as np
import torch
from torch import nn

from embedder.errors import ModelError
from embedder.models.compiled import compile_tried, lacking_compiler
from embedder.models.device import check_bfloat16
from embedder.models.encoder import RowReader, TextEncoder, TokenRow, encode_batches, encode_tokens

logger = logging.getLogger(__name__)

SAME_MASK = 1e-4
"""Largest difference of a component of a unit vector, or of a score, in float32, by two forms of one mask."""
SAME_LAYERS = 0.99
"""Least mean cosine of the vectors of compiled layers to those of plain ones."""
REFUSALS = (RuntimeError, TypeError, ValueError, IndexError, AttributeError)
"""What models raise of a mask of four dimensions that they do not know."""


def prepare_on_gpu(encoder: TextEncoder, rows: list[TokenRow], compiled: bool) -> None:
    """Put an encoder on a GPU into its number format and, for much work, compile its layers; tried on some rows.

    Raises:
        ModelError: 8 bits are asked for.
        DeviceError: the GPU has no bfloat16, and that is asked for.
    """
    if encoder.config.dtype == "int8":
        raise ModelError("dtype int8 is for CPUs, and this process encodes on a GPU; take bfloat16 or float32")
    # In float32, because in bfloat16 a wrong mask could pass for rounding.
    encoder.masks_keys = reads_key_masks(encoder, rows)
    if encoder.config.dtype == "bfloat16":
        check_bfloat16("the encoder's dtype")
        hold_in_bfloat16(encoder.backbone)
    if not compiled:
        return
    lacking = lacking_compiler()
    if lacking is not None:
        logger.warning("%s runs uncompiled, which is slower: there is no %s", encoder.config.model, lacking)
        return
    # A single row too, because other code is compiled for it.
    tried = (rows, rows[:1])
    wanted = [encode_tokens(encoder, some) for some in tried]

    def is_right() -> bool:
        pairs = [(encode_tokens(encoder, some), wanted_ND) for some, wanted_ND in zip(tried, wanted, strict=True)]
        return all(float((found_ND * wanted_ND).sum(1).mean()) >= SAME_LAYERS for found_ND, wanted_ND in pairs)

    compile_tried(encoder.backbone, is_right)


def reads_key_masks(encoder: RowReader, rows: list[TokenRow]) -> bool:
    """Tell whether a mask that has one entry for each key, (B, 1, 1, L), gives what the mask (B, L) gives.

    It does not where tokens see a part of the text alone: in decoders, and where layers have a window.
    """
    # One row is as long as any can be, so that no window reaches over all of it. All are in one batch, so that the
    # others are padded.
    most = encoder.max_tokens
    tried = [*rows, (rows[-1] * most)[:most]]
    batch = encoder.padded(tried, list(range(len(tried))))
    wanted_ND = encode_batches(encoder, [batch])
    encoder.masks_keys = True
    try:
        return bool(np.abs(encode_batches(encoder, [batch]) - wanted_ND).max() <= SAME_MASK)
    except REFUSALS:
        return False
    finally:
        encoder.masks_keys = False


def hold_in_bfloat16(network: nn.Module) -> None:
    """Turn weights into bfloat16, as transformers would load them; what a model computes itself stays as it is.

    Products are then of bfloat16 with sums in float32, and nothing is turned from one format into another on the way.
    """
    # What is computed is not in the state: frequencies of rotary positions would be others in bfloat16.
    for weight in network.state_dict(keep_vars=True).values():
        if weight.is_floating_point():
            weight.data = weight.data.to(torch.bfloat16)
