"""What answers on the wire are made of, and texts that are not empty; requests are made of `embedder.sent.Sent`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

Text = Annotated[str, StringConstraints(min_length=1)]
TextOrEmpty = Annotated[str, StringConstraints(min_length=0)]
"""May be empty. The constraint, which always holds, has pydantic read the text and so refuse a lone surrogate."""
Texts = Annotated[list[Text], Field(min_length=1)]
TokenIds = Annotated[list[int], Field(min_length=1)] | Annotated[list[list[int]], Field(min_length=1)]
"""Refused: those of another tokenizer would give plausible garbage."""
InputType = Literal["query", "document"]


class Strict(BaseModel):
    """Unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)
