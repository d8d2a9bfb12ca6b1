"""BM25 against its formula, with pools, ties and unknown words; dense search by blocks against one exact search."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedder.evaluation.answers import exact_match
from embedder.mining.bm25 import LexicalIndex
from embedder.mining.passage_search import search_on_device
from embedder.mining.ranking import Found, best, merge_found
from embedder.models.device import CPU
from tests.unit.cjk_texts import CHINESE, JAPANESE, cjk_set
from tests.unit.index_cases import unit
from tests.unit.judges import quick

TEXTS = {
    "p0": "red fox red fox red",
    "p1": "brown dog barks",
    "p2": "red dog sleeps near brown fox river",
    "p3": "green river flows",
    "p4": "brown dog barks",
}


@pytest.fixture(scope="module")
def index():
    return LexicalIndex(list(TEXTS), list(TEXTS.values()))


def bm25(query: str, passage: str) -> float:
    """Lucene's BM25 without the constant factor k1 + 1."""
    words = {name: text.split() for name, text in TEXTS.items()}
    average = sum(map(len, words.values())) / len(words)
    total = 0.0
    for word in query.split():
        holders = sum(word in text for text in words.values())
        count = words[passage].count(word)
        weight = math.log(1 + (len(words) - holders + 0.5) / (holders + 0.5))
        total += weight * count / (count + 1.5 * (1 - 0.75 + 0.75 * len(words[passage]) / average))
    return total


@pytest.mark.parametrize("query", ["red", "brown fox", "dog river river", "green red brown"])
def test_bm25_scores_are_those_of_the_formula(index, query):
    expected = best([(name, bm25(query, name)) for name in TEXTS if bm25(query, name) > 0], 5)
    (found,) = index.search([query], [None], 5)
    assert [name for name, _ in found] == [name for name, _ in expected]
    assert [score for _, score in found] == pytest.approx([score for _, score in expected], rel=1e-5)


def test_bm25_orders_equal_scores_by_id(index):
    (found,) = index.search(["barks"], [None], 5)
    assert [name for name, _ in found] == ["p1", "p4"]


def test_bm25_pool_limits_the_ranking_and_keeps_passages_without_a_word(index):
    (found,) = index.search(["red dog"], [["p4", "p3", "p0"]], 5)
    assert [name for name, _ in found] == ["p0", "p4", "p3"]
    assert found[2][1] == 0
    assert [name for name, _ in index.search(["red dog"], [["p4", "p3", "p0"]], 2)[0]] == ["p0", "p4"]


@pytest.mark.parametrize("query", ["zebra", "the of", "", "?!"])
def test_bm25_query_without_a_known_word_finds_nothing(index, query):
    assert index.search([query], [None], 5) == [[]]
    assert index.search([query], [["p3", "p1"]], 5) == [[("p1", 0.0), ("p3", 0.0)]]


def test_bm25_ranking_is_not_changed_by_an_unknown_word(index):
    assert index.search(["fox zebra"], [None], 5) == index.search(["fox"], [None], 5)


def test_bm25_ranks_queries_apart(index):
    both = index.search(["red", "river"], [None, ["p3"]], 5)
    assert both == [*index.search(["red"], [None], 5), *index.search(["river"], [["p3"]], 5)]


def test_bm25_ties_at_the_cut_go_by_id_too():
    ids = [f"p{i:03}" for i in range(300)]
    index = LexicalIndex(ids[::-1], ["red fox"] * 300)
    assert [name for name, _ in index.search(["fox"], [None], 3)[0]] == ids[:3]


@pytest.mark.parametrize("text", ["the of", "?!", "a b"])
def test_bm25_finds_no_passage_without_a_single_word(text):
    index = LexicalIndex(["p0", "p1"], [text, text])
    assert index.search(["red fox"], [None], 5) == [[]]


@pytest.mark.parametrize(
    "texts",
    [
        pytest.param(
            {
                "中国的首都是北京，有两千万人口。": ["北京"],
                "巴黎是法国的首都": ["法国的首都是哪里"],
                "東京は日本の首都です": ["日本の首都"],
            },
            id="case 08-bm25-cjk",
        ),
        pytest.param(
            {
                "R is a language for statistics": ["R"],
                "C is a language for kernels": ["C"],
                "IT support opens tickets": ["IT"],
            },
            id="case 09-bm25-one-letter",
        ),
        pytest.param(
            {
                "cafe\u0301 au lait": ["caf\u00e9", "CAFÉ"],
                "हिन्दी भाषा": ["हिन्दी"],
                "हिन्द महासागर": ["हिन्द"],
                "كِتَابٌ قديم": ["كِتَابٌ"],
                "Große Straße": ["STRASSE", "größe große"],
                "서울은 수도다": ["서울"],
                "ภาษาไทยง่าย": ["ภาษา"],
                "猫が好きです": ["猫"],
                "ＬＬＭ 入門": ["llm"],
            },
            id="accents and scripts",
        ),
        pytest.param(
            {
                "written in C++, not C": ["C++"],
                "written in C# by hand": ["C#"],
                "call os.path.join twice": ["os.path.join", "path join", "join"],
                "the getUserName method": ["getUserName", "user name", "getusername"],
                "a snake_case word": ["snake_case", "snake"],
                "saved as utf-8 text": ["UTF-8", "utf"],
                "released as 3.14": ["3.14"],
                "released as 314": ["314"],
                "runs on .NET": [".net", ".NET"],
                "The Who play": ["The Who"],
            },
            id="code words whole and in parts",
        ),
    ],
)
def test_bm25_finds_words_of_every_script_and_of_code(texts):
    """Cases 08-bm25-cjk and 09-bm25-one-letter, and others of their kind."""
    index = LexicalIndex(list(texts), list(texts))
    expected = {query: text for text, queries in texts.items() for query in queries}
    rankings = index.search(list(expected), [None] * len(expected), 1)
    found = {query: [name for name, _ in ranking] for query, ranking in zip(expected, rankings, strict=True)}
    assert found == {query: [text] for query, text in expected.items()}


@pytest.mark.parametrize("kinds", [CHINESE, JAPANESE], ids=["Chinese", "Japanese"])
def test_bm25_finds_nine_of_ten_passages_of_a_language_without_spaces(kinds):
    passages, questions = cjk_set(kinds, seed=0)
    assert (len(passages), len(questions)) == (500, 50)
    index = LexicalIndex(list(passages), list(passages.values()))
    rankings = index.search([asked.text for asked in questions], [None] * 50, 5)
    found = [asked.passage_id in dict(ranking) for asked, ranking in zip(questions, rankings, strict=True)]
    assert sum(found) >= 45


@pytest.mark.parametrize("kinds", [CHINESE, JAPANESE], ids=["Chinese", "Japanese"])
def test_exact_match_accepts_every_right_answer_of_a_language_without_spaces(kinds):
    wide = {ord("0") + i: ord("０") + i for i in range(10)}
    passages, questions = cjk_set(kinds, seed=0)
    for asked in questions:
        right = asked.answer
        variants = [right, f"{right}。", f"「{right}」", f" “{right}”！", f"『{right}』．", right.translate(wide)]
        assert [exact_match(variant, [right]) for variant in variants] == [1] * 6
        assert right in passages[asked.passage_id]
        assert exact_match(right[:-1], [right]) == 0


def test_bm25_stop_words_of_the_settings_are_left_out_of_queries():
    texts = ["the fox", "the of", "it"]
    english = LexicalIndex(texts, texts, "english")
    rankings = english.search(["the fox of it", "of", "IT"], [None] * 3, 3)
    assert [[name for name, _ in ranking] for ranking in rankings] == [["the fox"], ["the of"], ["it"]]


def exact(query: np.ndarray, ids: list[str], vectors: np.ndarray, depth: int) -> list[tuple[str, float]]:
    scored = [(name, float(query @ vector)) for name, vector in zip(ids, vectors, strict=True)]
    return sorted(scored, key=lambda entry: (-entry[1], entry[0]))[:depth]


@quick
@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 12), st.integers(1, 15), st.booleans())
def test_dense_search_gives_the_exact_rankings(seed, passages, copies, depth, pooled):
    random = np.random.default_rng(seed)
    distinct = unit(random, passages // copies + 1, 4)
    vectors, queries = distinct[random.integers(0, len(distinct), passages)], unit(random, 3, 4)
    ids = [f"p{i}" for i in random.permutation(passages)]
    pool = set(random.choice(ids, passages // 2, replace=False).tolist()) if pooled else None
    found = search_on_device(queries, [pool] * 3, ids, vectors, depth, CPU)
    kept = [i for i, name in enumerate(ids) if pool is None or name in pool]
    scores = (queries.astype(np.float64) @ vectors[kept].astype(np.float64).T).astype(np.float32)
    assert found == [best(list(zip([ids[i] for i in kept], row.tolist(), strict=True)), depth) for row in scores]


def test_dense_search_every_query_has_its_own_pool():
    unit_vectors = np.eye(2, dtype=np.float32)
    found = search_on_device(unit_vectors, [{"b", "elsewhere"}, None], ["a", "b"], unit_vectors, 5, CPU)
    assert found == [[("b", 0.0)], [("b", 1.0), ("a", 0.0)]]


def one_query(*entries):
    """What a part of the corpus gave for one query."""
    ids = sorted(name for name, _ in entries)
    rows = np.array([[ids.index(name) for name, _ in entries]], dtype=np.int64)
    return Found(np.array([[score for _, score in entries]], dtype=np.float32), rows, pa.array(ids, pa.string()))


def test_merge_equal_scores_of_two_parts_are_ordered_by_id():
    merged = merge_found([one_query(("c", 1.0), ("a", 0.5)), one_query(("b", 1.0))], 2)
    assert merged.rankings() == [[("b", 1.0), ("c", 1.0)]]
    assert merged.ids.to_pylist() == ["b", "c"]


def test_merge_counts_what_stands_in_two_parts_once():
    merged = merge_found([one_query(("c", 1.0), ("a", 0.5)), one_query(("a", 0.5)), one_query()], 3)
    assert merged.rankings() == [[("c", 1.0), ("a", 0.5)]]


def test_found_becomes_rows_of_ranking_in_the_order_of_the_queries():
    found = Found(
        np.array([[2.0, -np.inf], [3.0, 1.0]], dtype=np.float32),
        np.array([[1, -1], [0, 1]], dtype=np.int64),
        pa.array(["a", "b"]),
    )
    rows = found.table(pa.array(["q1", "q0"])).to_pylist()
    nothing = {"named_ids": None, "named_scores": None}
    assert rows == [
        {"query_id": "q1", "ids": ["b"], "scores": [2.0], **nothing},
        {"query_id": "q0", "ids": ["a", "b"], "scores": [3.0, 1.0], **nothing},
    ]
