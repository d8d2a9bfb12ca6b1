"""The cross-encoder: a transformer that reads a query together with a candidate and gives the pair one score.

A plain Hugging Face folder (sequence classification with one label), so that other tools load it too.
B pairs, L tokens of the longest.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from embedder.errors import ConfigError
from embedder.models.encoder import length_batches
from embedder.models.locate import locate_model


class PairRow(NamedTuple):
    """The tokens of one pair, special tokens included."""

    ids: list[int]
    segments: list[int]
    """0 for the query, 1 for the candidate; empty for a model that does not tell them apart."""


class CrossEncoder(nn.Module):
    """(query, candidate) pairs to scores; higher is better, without bounds."""

    def __init__(
        self, network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_tokens: int, batch_tokens: int
    ) -> None:
        super().__init__()
        self.network: PreTrainedModel = network
        self.tokenizer = tokenizer
        self.max_tokens, self.batch_tokens = max_tokens, batch_tokens
        self._query_tokens = (max_tokens - tokenizer.num_special_tokens_to_add(pair=True)) // 2
        named = "token_type_ids" in tokenizer.model_input_names
        self._has_segments = named and getattr(network.config, "type_vocab_size", 0) > 1

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def tokenize(self, pairs: Sequence[tuple[str, str]]) -> list[PairRow]:
        """Tokens of each pair, at most `max_tokens`.

        A query that would fill more than half of them loses its end, the same for all its candidates; then the
        candidate is cut to what is left.
        """
        if not pairs:
            return []
        queries = self._cut([query for query, _ in pairs])
        rows = self.tokenizer(
            queries, [candidate for _, candidate in pairs], truncation="only_second", max_length=self.max_tokens
        )
        segments = rows["token_type_ids"] if self._has_segments else [[]] * len(pairs)
        return [PairRow(list(ids), list(kinds)) for ids, kinds in zip(rows["input_ids"], segments, strict=True)]

    def _cut(self, queries: list[str]) -> list[str]:
        """The text of each query's first tokens."""
        rows = self.tokenizer(
            queries,
            add_special_tokens=False,
            truncation=True,
            max_length=self._query_tokens,
            return_offsets_mapping=True,
        )
        return [
            query[: offsets[-1][1]] if len(offsets) == self._query_tokens else query
            for query, offsets in zip(queries, rows["offset_mapping"], strict=True)
        ]

    def forward(self, rows: list[PairRow]) -> Tensor:
        """Scores (B,) in the order of the rows; padded by length in batches of at most `batch_tokens`."""
        parts, order = [], []
        for indices in length_batches([len(row.ids) for row in rows], self.batch_tokens):
            parts.append(self._score_padded([rows[i] for i in indices]))
            order.extend(indices)
        back = torch.empty(len(order), dtype=torch.long)
        back[torch.tensor(order)] = torch.arange(len(order))
        return torch.cat(parts)[back.to(self.device)]

    def _score_padded(self, rows: list[PairRow]) -> Tensor:
        padding = self.network.config.pad_token_id
        ids_BL = _padded([row.ids for row in rows], padding).to(self.device)
        mask_BL = _padded([[1] * len(row.ids) for row in rows], 0).to(self.device)
        if self._has_segments:
            kinds_BL = _padded([row.segments for row in rows], 0).to(self.device)
            output = self.network(input_ids=ids_BL, attention_mask=mask_BL, token_type_ids=kinds_BL)
        else:
            output = self.network(input_ids=ids_BL, attention_mask=mask_BL)
        logits_B1: Tensor = output.logits
        return logits_B1[:, 0].float()

    def score(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """The score of each pair, without gradient."""
        if not pairs:
            return []
        with torch.inference_mode():
            scores: list[float] = self(self.tokenize(pairs)).tolist()
        return scores


def _padded(rows: list[list[int]], value: int) -> Tensor:
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value)


def load_cross_encoder(model: str, max_tokens: int, batch_tokens: int, device: str | None = None) -> CrossEncoder:
    """Load a cross-encoder, on the GPU if there is one; an encoder without a head gets one from torch's random state.

    It stays in evaluation mode even while it is trained: without dropout the result depends neither on the number of
    workers nor on where a run was resumed.

    Raises:
        ConfigError: the model has fewer positions than `max_tokens`.
        ModelError: the folder is missing or has no weights.
    """
    source = locate_model(model)
    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    tokenizer.padding_side = "right"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.model_max_length = max_tokens
    network = AutoModelForSequenceClassification.from_pretrained(
        source, num_labels=1, trust_remote_code=False, use_safetensors=True, dtype=torch.float32
    )
    positions = getattr(network.config, "max_position_embeddings", max_tokens)
    if max_tokens > positions:
        raise ConfigError(f"reranker.max_tokens is {max_tokens}, but {model} reads {positions} tokens at most")
    network.config.pad_token_id = tokenizer.pad_token_id
    encoder = CrossEncoder(network, tokenizer, max_tokens, batch_tokens).eval()
    return encoder.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def export_cross_encoder(encoder: CrossEncoder, folder: Path) -> None:
    """Write a Hugging Face folder; sentence-transformers' CrossEncoder gives the same scores, without a sigmoid."""
    folder.mkdir(parents=True, exist_ok=True)
    encoder.network.config.sentence_transformers = {"activation_fn": "torch.nn.modules.linear.Identity"}
    encoder.network.save_pretrained(folder, safe_serialization=True)
    encoder.tokenizer.save_pretrained(folder)
