"""What answers on the wire are made of, and texts that are not empty. Requests are made of `embedder.index.sent`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints


def _no_token_ids(given: object) -> object:
    """Refuse token ids: those of another tokenizer would give plausible garbage."""
    if isinstance(given, list) and given and isinstance(given[0], int | list):
        raise ValueError("token ids are not accepted, send text (LangChain: check_embedding_ctx_length=False)")
    return given


Text = Annotated[str, StringConstraints(min_length=1)]
"""Its greatest length is a setting, which the service checks; so is the greatest number of texts."""
TextOrEmpty = Annotated[str, StringConstraints(min_length=0)]
"""May be empty. The constraint, which always holds, has pydantic read the text and so refuse a lone surrogate."""
Texts = Annotated[list[Text], Field(min_length=1, fail_fast=True)]
TextOrTexts = Annotated[Text | Texts, BeforeValidator(_no_token_ids)]
Name = Annotated[str, StringConstraints(max_length=1024)]
"""What names something, or is passed over."""
InputType = Literal["query", "document"]


class Strict(BaseModel):
    """Unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)
