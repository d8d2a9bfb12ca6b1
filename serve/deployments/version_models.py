"""The encoder and the reranker of a version, as a replica holds them: weights, tokenizers and batches."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Generic, TypeVar

from embedder.models.encoder import TextEncoder, TokenRow
from embedder.training.cross_encoder import CrossEncoder
from serve.backend import Texts, are_pairs
from serve.deployments.batching import TokenBatcher
from serve.http_errors import ApiError

Network = TypeVar("Network", bound=TextEncoder | CrossEncoder)


class Batched(Generic[Network]):
    """A model behind batches that all requests share."""

    def __init__(self, network: Network, batcher: TokenBatcher) -> None:
        self.network, self.batcher = network, batcher
        # Shallow: the weights are the same. A tokenizer may not be used by two threads at once.
        self._for_large = copy.copy(network)
        self._for_large.tokenizer = copy.deepcopy(network.tokenizer)

    def _reading(self, is_small: bool) -> Network:
        """The model with the tokenizer of small requests, or with that of large ones."""
        return self.network if is_small else self._for_large


class ServedEncoder(Batched[TextEncoder]):
    """Reads texts."""

    def tokenize(self, texts: Texts, *, is_small: bool = True) -> list[TokenRow]:
        """The row of each text."""
        assert not are_pairs(texts)
        return self._reading(is_small).tokenize(texts)

    def counts(self, rows: list[TokenRow]) -> list[int]:
        """Tokens of each row."""
        return [len(row) for row in rows]

    def too_long(self, texts: Texts, rows: list[TokenRow], *, is_small: bool) -> tuple[int, int] | None:
        """Position and tokens of the first text of which a part was cut."""
        network = self._reading(is_small)
        for i, row in enumerate(rows):
            # A row that is cut has as many as there may be, and does not say how long its text is.
            if len(row) >= network.max_tokens:
                length = len(network.tokenizer(str(texts[i]), truncation=False)["input_ids"])
                if length > network.max_tokens:
                    return i, length
        return None


class ServedReranker(Batched[CrossEncoder]):
    """Reads pairs."""

    def tokenize(self, texts: Texts, *, is_small: bool = True) -> list[TokenRow]:
        """The row of each pair."""
        assert are_pairs(texts)
        return self._reading(is_small).tokenize([(pair.query, pair.text) for pair in texts])

    def counts(self, rows: list[TokenRow]) -> list[int]:
        """Tokens of each row, which has one number more."""
        return [len(row) - 1 for row in rows]

    def too_long(self, texts: Texts, rows: list[TokenRow], *, is_small: bool) -> tuple[int, int] | None:
        """Position and tokens of the first pair of which a part was cut."""
        assert are_pairs(texts)
        # Of all, because a pair whose query alone was cut may be short then.
        lengths = self._reading(is_small).lengths([(pair.query, pair.text) for pair in texts])
        return next(((i, length) for i, length in enumerate(lengths) if length > self.network.max_tokens), None)


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
