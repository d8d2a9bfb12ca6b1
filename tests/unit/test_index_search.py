"""One collection, and several shards of it: results, filters, ties, factories."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedder.config.index import BuildSettings, SearchParameters
from embedder.config.language import WordsConfig
from embedder.errors import BundleError, ConfigError, DataError
from embedder.index.collection import Collection, write_collection
from embedder.index.documents import PAYLOAD, Document
from embedder.index.faiss_index import choose_factory, empty_vectors
from embedder.index.filters import Filter, equals, matching
from embedder.index.living import MutableCollection
from embedder.index.results import fuse, merge, search_results
from tests.unit.cjk_texts import CHINESE, JAPANESE, cjk_set
from tests.unit.index_cases import (
    IDENTITY,
    NO_CHOICE,
    WIDTH,
    collection,
    documents_of,
    ids,
    mutable,
    payload_of,
    unit,
    write,
)
from tests.unit.judges import quick

EXACT = SearchParameters(exact=True)


def search(one: Collection, queries: np.ndarray, k: int, parameters=NO_CHOICE, allowed=None):
    return search_results(one.rank(queries, k, parameters, allowed), one.payload)


def names(count: int) -> list[str]:
    return [f"p{i:05}" for i in range(count)]


def test_collection_finds_what_numpy_finds(tmp_path):
    random = np.random.default_rng(0)
    vectors, queries = unit(random, 50), unit(random, 4)
    one = collection(tmp_path / "c", documents_of(names(50), year=2020), vectors)
    for query, hits in zip(queries, search(one, queries, 7).hits(), strict=True):
        scores = vectors @ query
        order = np.argsort(-scores)[:7]
        assert [hit.id for hit in hits] == [names(50)[i] for i in order]
        assert [hit.score for hit in hits] == pytest.approx(scores[order].tolist(), abs=1e-6)
        assert [(hit.text, hit.title, hit.dataset, hit.metadata) for hit in hits] == [
            (f"text of {names(50)[i]}", None, "d", {"year": 2020}) for i in order
        ]


def test_collection_of_fewer_passages_than_asked_for_finds_all(tmp_path):
    one = collection(tmp_path / "c", documents_of("abc"), np.eye(WIDTH, dtype=np.float32)[:3])
    assert ids(search(one, np.eye(WIDTH, dtype=np.float32)[1:2], 100)) == [["b", "a", "c"]]


def test_collection_of_nothing_finds_nothing(tmp_path):
    one = collection(tmp_path / "c", [], np.empty((0, WIDTH), np.float32), factory="IVF4,Flat")
    assert ids(search(one, unit(np.random.default_rng(0), 2), 3)) == [[], []]
    assert (one.info.rows, one.info.factory) == (0, "Flat")


@quick
@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 4), st.integers(1, 12))
def test_merge_of_shards_finds_what_one_collection_finds(tmp_path_factory, seed, passages, shards, k):
    """Ids, scores and order are equal to the last digit, ties and all."""
    random = np.random.default_rng(seed)
    vectors = unit(random, max(1, passages // 3))[random.integers(0, max(1, passages // 3), passages)]
    queries, documents = unit(random, 2), documents_of(names(passages))
    owner = random.integers(0, shards, passages)
    folder = tmp_path_factory.mktemp("shards")
    parts = [
        collection(
            folder / str(s), [documents[i] for i in np.flatnonzero(owner == s)], vectors[owner == s], lexical=False
        )
        for s in set(owner.tolist())
    ]
    whole = collection(folder / "whole", documents, vectors, lexical=False)
    merged = merge([search(part, queries, k) for part in parts], k)
    assert merged.hits() == search(whole, queries, k).hits()


def test_collection_finds_passages_of_one_score_by_id_at_the_cut_too(tmp_path):
    one = collection(tmp_path / "c", documents_of(names(20)), np.ones((20, 4), np.float32))
    assert ids(search(one, np.ones((1, 4), np.float32), 3)) == [names(3)]


def test_merge_of_ties_of_two_datasets_does_not_depend_on_the_number_of_shards(tmp_path):
    vectors = np.ones((2, 4), np.float32)
    documents = [*documents_of(["z"], "one"), *documents_of(["a"], "two")]
    both = collection(tmp_path / "both", documents, vectors)
    parts = [collection(tmp_path / name.dataset, [name], vectors[:1]) for name in documents]
    assert search(both, vectors[:1], 1).hits() == merge([search(part, vectors[:1], 1) for part in parts], 1).hits()


FACTORIES = ["HNSW16", "IVF4,Flat", "IVF4,PQ4x4fs,RFlat", "IVF4,PQ4x4fs", "SQ8", "PQ4x4fs", "HNSW16,SQ8", "PCA4,Flat"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("factory", FACTORIES)
def test_approximate_index_finds_nothing_twice_and_always_enough(tmp_path, monkeypatch, factory):
    monkeypatch.setattr("embedder.index.faiss_index.LEAST_PER_CENTROID", 4)
    monkeypatch.setattr("embedder.index.collection.EXACT_ROWS", 100)
    random = np.random.default_rng(1)
    vectors, queries = unit(random, 2000), unit(random, 20)
    one = collection(tmp_path / "c", documents_of(names(2000)), vectors, factory=factory)
    assert one.info.factory == factory
    for share in (None, 0.0001, 0.01, 0.5, 1.0):
        allowed = None if share is None else random.random(2000) < share
        available = 2000 if allowed is None else int(allowed.sum())
        for k in (10, 300):
            rows = one.rank(queries, k, SearchParameters(nprobe=1, ef_search=16), allowed).row_QK
            for hits in rows:
                hits = hits[hits >= 0]
                assert len(hits) == len(set(hits.tolist())) == min(k, available)
                assert allowed is None or allowed[hits].all()
    exact = one.rank(queries, 10, EXACT).row_QK
    assert (
        exact == collection(tmp_path / "flat", documents_of(names(2000)), vectors).rank(queries, 10, EXACT).row_QK
    ).all()


@pytest.mark.parametrize("share", [0.0001, 0.01, 0.5, 1.0])
def test_filter_leaves_exactly_the_best_of_those_that_match(tmp_path, share):
    random = np.random.default_rng(2)
    chosen = random.random(10_000) < share
    vectors, queries = unit(random, 10_000), unit(random, 5)
    documents = [
        Document(id=name, text="x", dataset="d", metadata={"chosen": bool(is_chosen)})
        for name, is_chosen in zip(names(10_000), chosen, strict=True)
    ]
    one = collection(tmp_path / "c", documents, vectors, lexical=False)
    allowed = matching(equals("chosen", True), one.metadata)
    assert (allowed == chosen).all()
    scores = queries.astype(np.float64) @ vectors.astype(np.float64).T
    for hits, row in zip(search(one, queries, 10, allowed=allowed).hits(), scores, strict=True):
        best = sorted(np.flatnonzero(chosen), key=lambda i, row=row: -row[i])[:10]
        assert [hit.id for hit in hits] == [names(10_000)[i] for i in best]


@pytest.mark.parametrize("bad", [np.ones((1, 7)), np.ones(8), np.full((1, 8), np.nan), np.full((1, 8), np.inf)])
def test_collection_refuses_a_query_vector_that_does_not_fit(tmp_path, bad):
    one = mutable(tmp_path, documents_of("abcdefgh"), np.eye(WIDTH, dtype=np.float32))
    with pytest.raises(ValueError, match="do not fit an index of width 8"):
        one.search(bad, 3, NO_CHOICE)


@pytest.mark.parametrize(("factory", "rows"), [("Flatt", 8), ("PQ3", 8), ("IVF4,PQ3", 8)])
def test_factory_that_faiss_cannot_build_is_refused_in_one_line(tmp_path, factory, rows):
    with pytest.raises(ConfigError) as caught:
        collection(tmp_path / "c", documents_of("abcdefgh"), unit(np.random.default_rng(0), rows), factory=factory)
    assert str(caught.value).startswith(f"index.factory {factory!r} with {rows} vectors")
    assert "\n" not in str(caught.value)


def test_collection_of_too_few_vectors_to_train_on_is_searched_exactly(tmp_path):
    one = collection(tmp_path / "c", documents_of("abcd"), np.eye(WIDTH, dtype=np.float32)[:4], factory="IVF64,Flat")
    assert one.info.factory == "Flat"
    assert one.info.settings.factory == "IVF64,Flat"


def test_factory_follows_the_size():
    assert choose_factory("auto", 50_000, 384) == "Flat"
    assert choose_factory("auto", 100_000, 384) == "IVF1024,PQ96x4fs,RFlat"
    assert choose_factory("auto", 1_000_000, 384) == "IVF4096,PQ96x4fs,RFlat"
    assert choose_factory("auto", 1_000_000, 31) == "Flat"
    assert choose_factory("HNSW32", 10, 384) == "HNSW32"


def test_flat_index_file_has_its_vectors_where_matrix_products_need_no_copy(tmp_path):
    vectors = unit(np.random.default_rng(0), 4)
    one = collection(tmp_path / "c", documents_of("abcd"), vectors)
    assert one.vectors.ctypes.data % 64 == 0
    assert str(tmp_path / "c" / "vectors.faiss") in Path("/proc/self/maps").read_text(), "not memory-mapped"
    assert np.array_equal(one.vectors, vectors)
    assert (tmp_path / "c" / "vectors.faiss").read_bytes()[64:] == vectors.tobytes()


def test_collection_refuses_vectors_without_payload(tmp_path):
    flat, _ = empty_vectors(8, WIDTH)
    with pytest.raises(BundleError, match="8 vectors of width 8, but 2 rows"):
        write_collection(tmp_path, payload_of(documents_of("ab")), flat, IDENTITY, BuildSettings())


def test_collection_refuses_rows_in_another_order_and_of_one_name(tmp_path):
    flat, view = empty_vectors(2, WIDTH)
    view[:] = 1
    with pytest.raises(BundleError, match="in the order of id and dataset"):
        write_collection(tmp_path, payload_of(documents_of("ba")), flat, IDENTITY, BuildSettings())
    with pytest.raises(DataError, match="2 passages have the id 'a'"):
        write_collection(tmp_path, payload_of(documents_of("aa")), flat, IDENTITY, BuildSettings())


def test_collection_finds_a_document_by_its_name(tmp_path):
    documents = [Document(id=name, text="x", dataset=dataset) for name in ("a", "b", "ä", "𝔘") for dataset in ("", "d")]
    one = collection(tmp_path / "c", documents, unit(np.random.default_rng(0), 8))
    for document in documents:
        row = one.row_of(document.name)
        assert one.payload.slice(row, 1).select(["id", "dataset"]).to_pylist() == [
            {"id": document.id, "dataset": document.dataset}
        ]
    assert one.row_of(("a", "e")) is None
    assert one.row_of(("zz", "d")) is None


def test_fusion_by_reciprocal_ranks_worked_by_hand(tmp_path):
    documents = documents_of("abcd")
    one = collection(tmp_path / "c", documents, np.eye(WIDTH, dtype=np.float32)[:4])
    first = search(one, np.array([[4, 3, 2, 0, 0, 0, 0, 0]], np.float32), 3)
    second = search(one, np.array([[0, 2, 0, 4, 0, 0, 0, 0]], np.float32), 2)
    fused = fuse([first, second], 10).hits()[0]
    assert [hit.id for hit in fused] == ["b", "a", "d", "c"]
    assert [hit.score for hit in fused] == pytest.approx([1 / 62 + 1 / 62, 1 / 61, 1 / 61, 1 / 63])


def test_bm25_finds_the_telling_words_in_stored_and_memtable_documents_alike(tmp_path):
    texts = ["the quick fox", "the lazy dog and a dog", "a fox and a dog", "nothing of the kind"]
    documents = [Document(id=str(i), text=text) for i, text in enumerate(texts)]
    vectors = unit(np.random.default_rng(0), 4)
    stored = mutable(tmp_path / "stored", documents, vectors)
    memtable = mutable(tmp_path / "memtable", [], vectors[:0])
    memtable.upsert(documents, vectors)
    queries = ["fox", "dog", "lazy dog", "absent words", "the"]
    for one in (stored, memtable):
        assert ids(one.search_words(queries, 5)) == [["0", "2"], ["1", "2"], ["1", "2"], [], ["0", "3", "1"]]
    assert stored.search_words(queries, 5).table["score"].to_pylist() == pytest.approx(
        memtable.search_words(queries, 5).table["score"].to_pylist()
    )
    assert ids(stored.search_words(["dog"], 5, Filter(must_not=[equals("dataset", "")]))) == [[]]


def stored_and_written(folder: Path, texts: dict[str, str], **settings) -> list[MutableCollection]:
    """Texts by id that are stored, written later, and compacted after they were written."""
    documents = [Document(id=name, text=text) for name, text in texts.items()]
    vectors = unit(np.random.default_rng(0), len(documents))
    stored, written, compacted = (
        mutable(folder / "stored", documents, vectors, **settings),
        mutable(folder / "written", [], vectors[:0], **settings),
        mutable(folder / "compacted", [], vectors[:0], **settings),
    )
    for each in (written, compacted):
        each.upsert(documents, vectors)
    compacted.compact()
    return [stored, written, compacted]


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        pytest.param(
            {"zh-1": "我喜欢学习编程语言和数据库", "ja-1": "東京タワーは日本の観光名所です"},
            {"编程": "zh-1", "数据库": "zh-1", "東京": "ja-1", "日本": "ja-1", "塔": None},
            id="case 11-lexical-cjk",
        ),
        pytest.param(
            {"cpp": "C and R are languages; C++ too.", "ident": "call getUserName(join_all) now"},
            {"C++": "cpp", "R": "cpp", "user name": "ident", "join": "ident", "getusername": "ident", "s": None},
            id="case 12-lexical-code-words",
        ),
        pytest.param(
            {"fr": "un cafe\u0301 noir", "hi": "हिन्दी भाषा", "ar": "كِتَابٌ قديم", "de": "Große Straße"},
            {"caf\u00e9": "fr", "हिन्दी": "hi", "كِتَابٌ": "ar", "STRASSE": "de", "हिन्द": None},
            id="accents and scripts",
        ),
    ],
)
def test_bm25_finds_words_of_every_script_and_of_code(tmp_path, texts, expected):
    """Cases 11-lexical-cjk and 12-lexical-code-words, and others of their kind."""
    for each in stored_and_written(tmp_path, texts):
        assert ids(each.search_words(list(expected), 1)) == [[name] if name else [] for name in expected.values()]


@pytest.mark.parametrize("kinds", [CHINESE, JAPANESE], ids=["Chinese", "Japanese"])
def test_bm25_finds_nine_of_ten_passages_of_a_language_without_spaces(tmp_path, kinds):
    passages, questions = cjk_set(kinds, seed=0)
    for each in stored_and_written(tmp_path, passages):
        hits = ids(each.search_words([asked.text for asked in questions], 5))
        assert sum(asked.passage_id in found for asked, found in zip(questions, hits, strict=True)) >= 45


def test_bm25_keeps_the_stop_words_that_the_index_was_built_with(tmp_path):
    texts = {"fox": "the fox", "of": "the of"}
    for each in stored_and_written(tmp_path, texts, words=WordsConfig(stop_words="english")):
        assert ids(each.search_words(["the fox of", "the of"], 5)) == [["fox"], ["of", "fox"]]


def test_collection_whose_words_were_split_otherwise_is_refused(tmp_path):
    info = write(tmp_path / "c", documents_of("ab"), np.eye(WIDTH, dtype=np.float32)[:2])
    path = tmp_path / "c" / "collection.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"format": 4', '"format": 3'), encoding="utf-8")
    with pytest.raises(BundleError, match="format 3, but this version reads format 4; build it again") as caught:
        Collection.load(tmp_path / "c", info.identity, check=True)
    assert "\n" not in str(caught.value)


def test_index_without_words_says_so(tmp_path):
    one = mutable(tmp_path, documents_of("ab"), np.eye(WIDTH, dtype=np.float32)[:2], lexical=False)
    with pytest.raises(DataError, match=r"set index\.lexical"):
        one.search_words(["x"], 1)


def test_payload_has_a_column_for_every_field_of_a_document():
    assert PAYLOAD.names == ["id", "dataset", "text", "title", "metadata"]
