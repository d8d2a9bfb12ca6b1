"""Tokenizers for which data is text: no string in it becomes a control token, such as the one that ends a turn.

A tokenizer finds its control tokens in every text that it is given, so a passage could end the user's turn and begin
the assistant's. The two tokenizers made here know none of them; their token ids are those of the one they come from.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from embedder.errors import ModelError

Json = dict[str, Any]

WHITE_SPACE = " \t\r\n\N{LOWER ONE EIGHTH BLOCK}"
"""The last of these signs stands for a space in vocabularies of SentencePiece."""
BYTE = re.compile("<0x[0-9A-F]{2}>")
WORD_SPLITTERS = {"WhitespaceSplit", "Whitespace", "BertPreTokenizer"}
"""Pre-tokenizers that take the spaces away, so that what follows them marks the beginning of each word."""


@dataclass(frozen=True, eq=False)
class PlainTokenizers:
    """Tokenizers without control tokens, for the two places where a text may stand, and one for the template's text."""

    template: Tokenizer
    """The model's own, which finds control tokens. It tells what each token stands for, with the white space that some
    tokenizers leave out of their offsets."""
    leading: Tokenizer
    """For a text with which a prompt begins: SentencePiece puts a space before it."""
    inner: Tokenizer
    """For a text that goes on from another: nothing is put before it."""
    control_ids: frozenset[int]
    """The tokens that neither of them gives for any text."""


def plain_tokenizers(tokenizer: PreTrainedTokenizerBase) -> PlainTokenizers:
    """Both tokenizers of a model.

    Raises:
        ModelError: the tokenizer has no form that could be taken apart.
    """
    if not tokenizer.is_fast:
        raise ModelError(
            f"the tokenizer {type(tokenizer).__name__} of {tokenizer.name_or_path!r} has no tokenizer.json form, so "
            "control tokens in passages could not be told from the prompt's own; name an LLM with a fast tokenizer"
        )
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    model, added = described["model"], described["added_tokens"]
    # Tokens for runs of white space were added so that code is short: they are text. All other added tokens may mean
    # something to the model, also those that are not marked special, as `<think>` and `<tool_call>` are not.
    blank = [token for token in added if not token["content"].strip(WHITE_SPACE)]
    numbered = model.get("unk_id")
    unknown = model.get("unk_token") if numbered is None else model["vocab"][numbered][0]
    # A byte of a letter that the vocabulary lacks is a part of the text, and so is the token for an unknown one.
    controls = {token["id"]: token["content"] for token in added if token not in blank}
    controls = {token: text for token, text in controls.items() if not BYTE.fullmatch(text)}
    if isinstance(model["vocab"], dict):
        # An added token keeps its id only where the model has it too; else it gets the next that is free.
        model = model | {"vocab": model["vocab"] | {token["content"]: token["id"] for token in blank}}
    else:
        blank = [token for token in blank if token["id"] < len(model["vocab"])]
    template = described | dict.fromkeys(("truncation", "padding", "post_processor"))
    plain = template | {"added_tokens": blank, "model": _without_controls(model, controls)}
    inner = plain | {name: _adding_nothing(plain[name]) for name in ("normalizer", "pre_tokenizer")}
    return PlainTokenizers(
        template=Tokenizer.from_str(json.dumps(template)),
        leading=Tokenizer.from_str(json.dumps(plain)),
        inner=Tokenizer.from_str(json.dumps(inner)),
        control_ids=frozenset(token for token, text in controls.items() if text != unknown),
    )


def _without_controls(model: Json, controls: dict[int, str]) -> Json:
    """The model with names for the control tokens that no text has.

    Their entries stay, because ids count entries; but the model itself would find `</s>` in a text as it finds a word.
    """
    # Unguessable, because a name that can be read here could be written into a passage. It decides no id.
    mark = uuid4().hex
    names = {text: f" {mark} {token} " for token, text in controls.items()}
    vocabulary = model["vocab"]
    if isinstance(vocabulary, list):  # Unigram: [piece, score]
        return {**model, "vocab": [[names.get(piece, piece), score] for piece, score in vocabulary]}
    changed = {**model, "vocab": {names.get(piece, piece): token for piece, token in vocabulary.items()}}
    if model.get("unk_token") in names:
        changed["unk_token"] = names[model["unk_token"]] if model["unk_token"] in vocabulary else None
    if "merges" in model:
        dropped = len(model.get("continuing_subword_prefix") or "")
        changed["merges"] = [
            [first, second]
            for first, second in map(_parts, model["merges"])
            if not {first, second, first + second[dropped:]} & names.keys()
        ]
    return changed


def _parts(merge: str | list[str]) -> list[str]:
    return merge.split(" ") if isinstance(merge, str) else merge


def _adding_nothing(step: Json | None) -> Json | None:
    """A normalizer or pre-tokenizer that puts nothing before a text, nor takes white space from its ends."""
    if step is None or step["type"] in {"Prepend", "Strip"}:
        return None
    for members in ("normalizers", "pretokenizers"):
        if members in step:
            if any(member["type"] in WORD_SPLITTERS for member in step[members]):
                return step
            return {**step, members: [kept for member in step[members] if (kept := _adding_nothing(member))]}
    if step["type"] == "Metaspace":
        return {**step, "prepend_scheme": "never"}
    return {**step, "add_prefix_space": False} if step.get("add_prefix_space") else step
