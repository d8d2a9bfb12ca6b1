"""What prompts need to know of an LLM, wherever it runs: its tokenizer, and where its texts begin and end."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property

from transformers import PreTrainedTokenizerBase

from embedder.models.plain_tokenizer import PlainTokenizers, plain_tokenizers


class LanguageModel(ABC):
    """An LLM with its tokenizer."""

    tokenizer: PreTrainedTokenizerBase

    @property
    @abstractmethod
    def device_kind(self) -> str:
        """What computes it, on which its last digits depend."""

    @property
    @abstractmethod
    def further_ends(self) -> object:
        """Ids with which it ends a text beside that of the tokenizer: one, a list, or None."""

    @property
    @abstractmethod
    def peak_flops(self) -> float:
        """Operations a second of what computes it; 0: not known."""

    def tokens(self, text: str) -> list[int]:
        """Token ids without special tokens."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    @property
    def end_ids(self) -> frozenset[int]:
        """Tokens with which the model or the tokenizer ends a text."""
        ends = [self.tokenizer.eos_token_id, self.further_ends]
        return frozenset(
            int(end) for each in ends if each is not None for end in (each if isinstance(each, list) else [each])
        )

    def stop_ids(self, stop: tuple[str, ...]) -> frozenset[int]:
        """Every token with one of the texts in it, such as ".\\n" for a line's end."""
        # By text and not by encoding the stop text, because a byte-pair vocabulary has many tokens that contain it.
        texts = self.token_texts if stop else []
        return frozenset(token for token, text in enumerate(texts) if any(mark in text for mark in stop))

    @cached_property
    def plain(self) -> PlainTokenizers:
        """The tokenizers for data, in which no text is a control token."""
        return plain_tokenizers(self.tokenizer)

    @cached_property
    def lead_ids(self) -> list[int]:
        """What the tokenizer puts before every text: the beginning-of-text token of most models, or nothing."""
        whole, plain = (list(self.tokenizer("a", add_special_tokens=flag)["input_ids"]) for flag in (True, False))
        starts = [i for i in range(len(whole)) if whole[i : i + len(plain)] == plain]
        return whole[: starts[0]] if starts else []

    @cached_property
    def token_texts(self) -> list[str]:
        """The text of each token by its id."""
        return list(self.tokenizer.batch_decode([[token] for token in range(len(self.tokenizer))]))
