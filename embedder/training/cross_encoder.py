"""The cross-encoder: a transformer that reads a query together with a candidate and gives the pair one score.

A plain Hugging Face folder (sequence classification with one label), so that other tools load it too.
B pairs, L tokens of the longest.

A row is the tokens of a pair, special ones included, behind one number: how many of them are of the query's segment.
One list of numbers, because the loop sorts rows by length and finds equal ones without knowing what they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from embedder.config.cutting import PromptedText, prompted_text
from embedder.config.tasks import TaskSpec
from embedder.errors import ConfigError
from embedder.models.encoder import (
    SIGHT,
    PaddedRows,
    TokenRow,
    aligned_lengths,
    embed_batches,
    encode_batches,
    key_mask,
    length_batches,
)
from embedder.models.gpu_encoder import reads_key_masks
from embedder.models.loader import CROSS_ENCODER, check_loadable, load_network, one_model_error, usable_positions
from embedder.models.locate import locate_model
from embedder.models.memory import BatchLimit
from embedder.models.transfer import pinned, upload


class CrossEncoder(nn.Module):
    """(query, candidate) pairs to scores; higher is better, without bounds."""

    def __init__(
        self, network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_tokens: int, batch_tokens: int
    ) -> None:
        super().__init__()
        self.network: PreTrainedModel = network
        self.tokenizer = tokenizer
        self.max_tokens: int = max_tokens
        self.batch_tokens = batch_tokens
        self.masks_keys = False
        self.memory = BatchLimit("scoring by the reranker", "padded tokens")
        self._query_tokens = (max_tokens - tokenizer.num_special_tokens_to_add(pair=True)) // 2
        named = "token_type_ids" in tokenizer.model_input_names
        self._has_segments = named and getattr(network.config, "type_vocab_size", 0) > 1

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def tokenize(self, pairs: Sequence[tuple[str | PromptedText, str]]) -> list[TokenRow]:
        """The row of each pair, of at most `max_tokens` tokens.

        A query that would fill more than half of them is cut as `bare_query` says, a plain text at its end, the same
        for all its candidates; then the candidate is cut to what is left.
        """
        if not pairs:
            return []
        queries = self._cut([query for query, _ in pairs])
        rows = self.tokenizer(
            queries, [candidate for _, candidate in pairs], truncation="only_second", max_length=self.max_tokens
        )
        segments = rows["token_type_ids"] if self._has_segments else [[]] * len(pairs)
        return [[kinds.count(0), *ids] for ids, kinds in zip(rows["input_ids"], segments, strict=True)]

    def _cut(self, queries: list[str | PromptedText]) -> list[str]:
        """The text of each query's first or last tokens."""
        texts = [str(query) for query in queries]
        rows = self.tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
        cut = []
        for query, text, offsets in zip(queries, texts, rows["offset_mapping"], strict=True):
            if len(offsets) <= self._query_tokens:
                cut.append(text)
            elif isinstance(query, PromptedText) and query.keeps_end:
                cut.append(text[offsets[-self._query_tokens][0] :])
            else:
                cut.append(text[: offsets[self._query_tokens - 1][1]])
        return cut

    def forward(self, rows: list[TokenRow] | PaddedRows) -> Tensor:
        """Scores (B,) in the order of the rows: those of one forward pass, or some that are padded by length."""
        if isinstance(rows, PaddedRows):
            return self.embed(rows)
        batches = length_batches([len(row) for row in rows], self.batch_tokens)
        return embed_batches(lambda some: self.embed(self.padded(some, list(range(len(some))))), rows, batches)

    def row_lengths(self, rows: list[TokenRow]) -> NDArray[np.int64]:
        """Tokens that each row takes where it is the longest of its pass, and one more for the number before them."""
        length_B = np.array([len(row) - 1 for row in rows], dtype=np.int64)
        return 1 + (aligned_lengths(length_B, self.max_tokens) if self.device.type == "cuda" else length_B)

    def padded(self, rows: list[TokenRow], indices: list[int]) -> PaddedRows:
        length_B = torch.tensor([len(row) - 1 for row in rows])
        mask_BL = torch.arange(int(self.row_lengths(rows).max()) - 1) < length_B[:, None]
        ids_BL = torch.full(mask_BL.shape, self.network.config.pad_token_id)
        ids_BL[mask_BL] = torch.tensor([token for row in rows for token in row[1:]], dtype=ids_BL.dtype)
        query_B = pinned(torch.tensor([row[0] for row in rows]), self.device) if self._has_segments else None
        return PaddedRows(indices, pinned(ids_BL, self.device), pinned(mask_BL.long(), self.device), query_B)

    def embed(self, batch: PaddedRows) -> Tensor:
        """Scores (B,) of one forward pass, in the order of its pairs."""
        ids_BL, mask_BL = upload(batch.ids_BL, self.device), upload(batch.mask_BL, self.device)
        inputs = {"input_ids": ids_BL, "attention_mask": key_mask(mask_BL) if self.masks_keys else mask_BL}
        if batch.query_B is not None:
            query_B1 = upload(batch.query_B, self.device)[:, None]
            position_L = torch.arange(ids_BL.shape[1], device=self.device)
            inputs["token_type_ids"] = (position_L >= query_B1).long() * mask_BL
        logits_B1: Tensor = self.network(**inputs).logits
        return logits_B1[:, 0].float()

    def score(self, pairs: Sequence[tuple[str | PromptedText, str]]) -> list[float]:
        """The score of each pair, without gradient.

        Raises:
            torch.OutOfMemoryError: a single pair does not fit.
        """
        scores: list[float] = self.score_rows(self.tokenize(pairs)).tolist() if pairs else []
        return scores

    def score_rows(self, rows: list[TokenRow]) -> NDArray[np.float32]:
        """Scores (N,) of the rows of one pair or more, without gradient.

        Raises:
            torch.OutOfMemoryError: a single pair does not fit.
        """
        batches = length_batches([len(row) for row in rows], self.batch_tokens)
        return encode_batches(self, (self.padded([rows[i] for i in batch], batch) for batch in batches))

    def lengths(self, pairs: Sequence[tuple[str | PromptedText, str]]) -> list[int]:
        """Tokens of pairs of which nothing is cut."""
        rows = self.tokenizer(
            [str(query) for query, _ in pairs], [candidate for _, candidate in pairs], truncation=False
        )
        return [len(row) for row in rows["input_ids"]]


def check_cross_encoder(model: str, max_tokens: int) -> None:
    """Refuse what `load_cross_encoder` would refuse, as far as that is known without reading weights.

    Raises:
        ConfigError, ModelError: as there.
    """
    config, _ = check_loadable(CROSS_ENCODER, locate_model(model))
    _check_positions(config, model, max_tokens)


def _check_positions(config: PreTrainedConfig, model: str, max_tokens: int) -> None:
    positions = usable_positions(config)
    if positions is not None and max_tokens > positions:
        raise ConfigError(f"reranker.max_tokens is {max_tokens}, but {model} reads {positions} tokens at most")


def bare_query(task: TaskSpec, query: str) -> PromptedText:
    """A query as a cross-encoder reads it: in the order and with the cut of its task, without an instruction."""
    return prompted_text("", query, task.query_cut)


def load_cross_encoder(
    model: str, max_tokens: int | None, batch_tokens: int, device: torch.device | str
) -> CrossEncoder:
    """Load a cross-encoder on a device; an encoder without a head gets one from torch's random state.

    `max_tokens` None: as many as its tokenizer says, in which `export_cross_encoder` leaves them.

    It stays in evaluation mode even while it is trained: without dropout the result depends neither on the number of
    workers nor on where a run was resumed.

    Raises:
        ConfigError: the model has fewer positions than `max_tokens`.
        ModelError: the folder is missing or has no weights.
    """
    folder = locate_model(model)
    config, tokenizer = check_loadable(CROSS_ENCODER, folder)
    if max_tokens is None:
        max_tokens = int(tokenizer.model_max_length)
    _check_positions(config, model, max_tokens)
    tokenizer.padding_side = "right"  # the tokens and segments of a row count from the left
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.model_max_length = max_tokens
    network = load_network(CROSS_ENCODER, folder, config)
    network.config.pad_token_id = tokenizer.pad_token_id
    encoder = CrossEncoder(network, tokenizer, max_tokens, batch_tokens).eval()
    with one_model_error(folder):
        encoder.to(device)
    if encoder.device.type == "cuda":
        encoder.masks_keys = reads_key_masks(encoder, encoder.tokenize([SIGHT]))
    return encoder


def export_cross_encoder(encoder: CrossEncoder, folder: Path) -> None:
    """Write a Hugging Face folder; sentence-transformers' CrossEncoder gives the same scores, without a sigmoid."""
    folder.mkdir(parents=True, exist_ok=True)
    encoder.network.config.sentence_transformers = {"activation_fn": "torch.nn.modules.linear.Identity"}
    encoder.network.save_pretrained(folder, safe_serialization=True)
    encoder.tokenizer.save_pretrained(folder)
