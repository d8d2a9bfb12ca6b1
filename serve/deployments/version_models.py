"""The encoder and the reranker of a version, as a replica holds them: weights, tokenizers and batches."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TypeVar

from embedder.models.encoder import TextEncoder, TokenRow
from embedder.training.cross_encoder import CrossEncoder
from serve.backend import Texts, are_pairs
from serve.deployments.batching import TokenBatcher
from serve.http_errors import ApiError

Network = TypeVar("Network", TextEncoder, CrossEncoder)


@dataclass(frozen=True, eq=False)
class ServedEncoder:
    network: TextEncoder
    for_large: TextEncoder
    """The same with a tokenizer of its own, for large requests."""
    batcher: TokenBatcher

    def tokenize(self, texts: Texts, *, is_small: bool = True) -> list[TokenRow]:
        assert not are_pairs(texts)
        return (self.network if is_small else self.for_large).tokenize(texts)

    def counts(self, rows: list[TokenRow]) -> list[int]:
        """Tokens of each row."""
        return [len(row) for row in rows]

    def lengths(self, texts: Texts, *, is_small: bool) -> list[int]:
        """Tokens of texts of which nothing is cut."""
        network = self.network if is_small else self.for_large
        rows = network.tokenizer([str(text) for text in texts], truncation=False)["input_ids"]
        return [len(row) for row in rows]


@dataclass(frozen=True, eq=False)
class ServedReranker:
    network: CrossEncoder
    for_large: CrossEncoder
    """The same with a tokenizer of its own, for large requests."""
    batcher: TokenBatcher

    def tokenize(self, texts: Texts, *, is_small: bool = True) -> list[TokenRow]:
        assert are_pairs(texts)
        return (self.network if is_small else self.for_large).tokenize([(pair.query, pair.text) for pair in texts])

    def counts(self, rows: list[TokenRow]) -> list[int]:
        """Tokens of each row, which has one number more."""
        return [len(row) - 1 for row in rows]

    def lengths(self, texts: Texts, *, is_small: bool) -> list[int]:
        """Tokens of pairs of which nothing is cut."""
        assert are_pairs(texts)
        return (self.network if is_small else self.for_large).lengths([(pair.query, pair.text) for pair in texts])


@dataclass(frozen=True, eq=False)
class VersionModels:
    """The models of a version; versions share equal ones."""

    encoder: ServedEncoder
    reranker: ServedReranker | None

    def of(self, texts: Texts) -> ServedEncoder | ServedReranker:
        """The one that reads them.

        Raises:
            ApiError: there is none.
        """
        if not are_pairs(texts):
            return self.encoder
        if self.reranker is None:
            raise ApiError(400, "the index has no reranker")
        return self.reranker

    def both(self) -> list[ServedEncoder | ServedReranker]:
        return [self.encoder, self.reranker] if self.reranker else [self.encoder]


def with_own_tokenizer(network: Network) -> Network:
    """The same weights behind a tokenizer that another thread may use."""
    found = copy.copy(network)
    found.tokenizer = copy.deepcopy(network.tokenizer)
    return found
