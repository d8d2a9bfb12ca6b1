"""Tokenizers that know no control tokens."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from tokenizers import AddedToken

from embedder.errors import ModelError
from embedder.labelling.prompt_layout import encode
from embedder.models.plain_tokenizer import plain_tokenizers
from tests.unit.tiny_tokenizers import CONTROLS, SAID, THOUGHTS, TOKENIZERS, tiny_tokenizer


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_plain_tokenizers_give_the_ids_of_their_origin_for_harmless_texts(kind):
    tokenizer = tiny_tokenizer(kind)
    plain = plain_tokenizers(tokenizer)
    for text in SAID:
        assert encode(plain.leading, text).ids == tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_plain_tokenizers_find_no_control_token_in_a_text(kind):
    tokenizer = tiny_tokenizer(kind)
    plain = plain_tokenizers(tokenizer)
    assert {tokenizer.convert_tokens_to_ids(each) for each in (*CONTROLS, *THOUGHTS)} <= plain.control_ids
    for control in (*CONTROLS, *THOUGHTS):
        for text in (control, f"a {control}b", control * 3, f" {control} "):
            for each in (plain.leading, plain.inner):
                span = encode(each, text)
                assert span.ids
                assert not plain.control_ids & set(span.ids)


@pytest.mark.parametrize("kind", [kind for kind in TOKENIZERS if kind not in {"WordPiece", "Unigram, T5"}])
def test_plain_tokenizers_put_nothing_before_a_text_that_goes_on(kind):
    plain = plain_tokenizers(tiny_tokenizer(kind))
    tokens = [plain.inner.id_to_token(token) for token in encode(plain.inner, "Paris is").ids]
    assert tokens[0][0] == "P"


def test_plain_tokenizers_keep_tokens_for_runs_of_white_space():
    """GPT-NeoX and Phi have such added tokens, and code is written with them."""
    tokenizer = tiny_tokenizer("byte level, GPT-2")
    tokenizer.add_tokens([AddedToken("    ", normalized=False)])
    plain = plain_tokenizers(tokenizer)
    run = tokenizer.convert_tokens_to_ids("    ")
    assert run in encode(plain.leading, "a\n    fox").ids
    assert run not in plain.control_ids


def test_plain_tokenizers_an_unknown_letter_is_no_control_token():
    for kind in ("WordPiece", "Unigram, first"):
        tokenizer = tiny_tokenizer(kind)
        plain = plain_tokenizers(tokenizer)
        assert tokenizer.unk_token_id in encode(plain.leading, "\N{SNOWMAN}").ids
        assert tokenizer.unk_token_id not in plain.control_ids
        assert tokenizer.unk_token_id not in encode(plain.leading, "<unk>").ids or kind == "WordPiece"


def test_plain_tokenizers_without_a_fast_form_are_refused_in_one_line():
    slow = SimpleNamespace(is_fast=False, name_or_path="/models/canine")
    with pytest.raises(ModelError, match=r"of '/models/canine' has no .* name an LLM with a fast tokenizer") as refused:
        plain_tokenizers(slow)
    assert "\n" not in str(refused.value)
