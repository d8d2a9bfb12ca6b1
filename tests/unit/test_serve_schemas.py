"""Requests on the wire: what is taken and what is refused."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from serve.schemas.embedding_schemas import EmbeddingRequest
from serve.schemas.search_schemas import SearchRequest


@pytest.mark.parametrize("texts", ["one text", ["one"], ["one", "two"]])
def test_embedding_request_takes_texts_as_they_are(texts):
    request = EmbeddingRequest(input=texts, model="m")
    assert (request.input, request.encoding_format, request.input_type, request.task) == (texts, "float", "query", None)


@pytest.mark.parametrize("tokens", [[1, 2, 3], [[1, 2], [3]]])
def test_embedding_request_refuses_token_ids_and_says_what_to_send(tokens):
    with pytest.raises(ValidationError, match="token ids are not accepted, send text"):
        EmbeddingRequest(input=tokens, model="m")


@pytest.mark.parametrize("bad", ["", [], [""], ["a", ""], None, 3, {"text": "a"}, ["a", 1], [[["a"]]]])
def test_embedding_request_of_no_text_is_refused(bad):
    with pytest.raises(ValidationError, match="input"):
        EmbeddingRequest(input=bad, model="m")


@pytest.mark.parametrize(
    "fields",
    [{"encoding_format": "int8"}, {"dimensions": 0}, {"input_type": "passage"}, {"trunc": True}, {"model": None}],
)
def test_embedding_request_with_an_unknown_key_or_value_is_refused(fields):
    with pytest.raises(ValidationError, match=next(iter(fields))):
        EmbeddingRequest(**{"input": "a", "model": "m", **fields})


def test_search_request_has_ten_results_unless_told_otherwise():
    assert SearchRequest(query="a", task="qa").k == 10
    assert SearchRequest(query=["a", "b"], task="qa", k=3).k == 3


@pytest.mark.parametrize(
    "fields", [{"query": ""}, {"query": []}, {"query": [""]}, {"k": 0}, {"task": None}, {"top_k": 3}]
)
def test_search_request_of_another_form_is_refused(fields):
    with pytest.raises(ValidationError, match=next(iter(fields))):
        SearchRequest(**{"query": "a", "task": "qa", **fields})
