"""The settings of an evaluation: short forms, defaults, and what is refused."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from embedder.config.evaluate import (
    PASSAGES,
    BuiltinRetriever,
    EndpointRetriever,
    EvaluateConfig,
    FolderRetriever,
)


def read(**fields):
    return EvaluateConfig.model_validate(fields)


def test_words_are_built_in_retrievers_and_mappings_folders():
    remote = {"kind": "endpoint", "name": "api", "url": "http://h/v1", "model": "m"}
    found = read(retrievers=["bm25", "base", {"name": "e5", "model": "/models/e5"}, remote]).retrievers
    assert [type(one) for one in found] == [BuiltinRetriever, BuiltinRetriever, FolderRetriever, EndpointRetriever]
    assert [one.name for one in found] == ["bm25", "base", "e5", "api"]


def test_by_default_all_built_in_ones_are_compared_without_an_llm():
    plain = read()
    assert [one.name for one in plain.retrievers] == ["none", "random", "recency", "bm25", "base", "trained"]
    assert not plain.asks and plain.passages == PASSAGES


def test_one_number_of_queries_stands_for_every_evaluation_that_asks():
    assert read(llm_queries=7).llm_queries == dict.fromkeys(PASSAGES, 7)
    assert read(llm_queries={"qa": 3}).llm_queries == {"qa": 3}
    assert not read(llm_queries=0).asks and read(llm_queries={"chat": 1}).asks


def test_passages_that_are_not_named_are_those_of_the_paper():
    assert read(passages={"qa": 1}).passages == {**PASSAGES, "qa": 1}


def test_a_resolved_run_file_reads_back():
    one = read(retrievers=["none", "base", {"name": "e5", "model": "/m"}], llm_queries=2)
    assert EvaluateConfig.model_validate(one.model_dump(mode="json")) == one


BAD = {
    "unknown word": ({"retrievers": ["nope"]}, "nope"),
    "no retriever": ({"retrievers": []}, "at least 1"),
    "one name twice": ({"retrievers": ["base", {"name": "base", "model": "/m"}]}, "names must differ"),
    "a name that is a path": ({"retrievers": ["base", {"name": "a/b", "model": "/m"}]}, "retriever 'a/b'"),
    "unknown baseline": ({"retrievers": ["bm25"]}, "baseline is 'base'"),
    "negative queries": ({"llm_queries": {"qa": -1}}, "give 0 or more"),
    "no passage": ({"passages": {"qa": 0}}, "give 1 or more"),
    "unknown evaluation": ({"llm_queries": {"poetry": 1}}, "poetry"),
    "unknown key": ({"answer_queries": 3}, "answer_queries"),
    "train split": ({"split": "train"}, "split"),
}


@pytest.mark.parametrize(("fields", "reason"), BAD.values(), ids=BAD.keys())
def test_what_does_not_fit_is_refused(fields, reason):
    with pytest.raises(ValidationError, match=reason):
        read(**fields)
