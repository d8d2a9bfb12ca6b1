"""One collection, and several shards of it, against numpy."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedder.errors import BundleError, ConfigError
from embedder.index import PAYLOAD, Collection, Hit, hit_record, merge_hits
from tests.unit.judges import quick


def payload(ids, dataset="d") -> pa.Table:
    rows = [{"id": name, "text": f"text of {name}", "title": None, "dataset": dataset} for name in ids]
    return pa.Table.from_pylist(rows, schema=PAYLOAD)


def unit(random: np.random.Generator, rows: int) -> np.ndarray:
    vectors = random.standard_normal((rows, 8)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def names(found):
    return [[hit.id for hit in hits] for hits in found]


def test_a_collection_finds_what_numpy_finds_before_and_after_saving(tmp_path):
    random = np.random.default_rng(0)
    vectors, queries = unit(random, 50), unit(random, 4)
    ids = [f"p{i:02}" for i in range(50)]
    built = Collection.build(vectors, payload(ids), "Flat")
    built.save(tmp_path / "qa")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["qa.arrow", "qa.faiss"]
    for collection in (built, Collection.load(tmp_path / "qa")):
        for query, hits in zip(queries, collection.search(queries, 7), strict=True):
            scores = vectors @ query
            order = np.argsort(-scores)[:7]
            assert [hit.id for hit in hits] == [ids[i] for i in order]
            assert [hit.score for hit in hits] == pytest.approx(scores[order].tolist(), abs=1e-6)
            assert [(hit.text, hit.title, hit.dataset) for hit in hits] == [
                (f"text of {ids[i]}", None, "d") for i in order
            ]


def test_fewer_passages_than_asked_for_are_all_found():
    collection = Collection.build(np.eye(8, dtype=np.float32)[:3], payload("abc"), "Flat")
    assert names(collection.search(np.eye(8)[1:2], 100)) == [["b", "a", "c"]]


def test_an_approximate_index_never_returns_a_row_twice_or_a_hole():
    vectors = unit(np.random.default_rng(1), 60)
    collection = Collection.build(vectors, payload([f"p{i:02}" for i in range(60)]), "IVF4,Flat")
    for i, hits in enumerate(names(collection.search(vectors, 30))):
        assert hits[0] == f"p{i:02}"
        assert len(set(hits)) == len(hits)


@quick
@given(st.integers(0, 10**6), st.integers(1, 30), st.integers(1, 4), st.integers(1, 12))
def test_merged_shards_find_what_one_index_finds(seed, passages, shards, k):
    random = np.random.default_rng(seed)
    vectors, queries = unit(random, passages), unit(random, 2)
    ids = np.array([f"p{i:02}" for i in range(passages)])
    owner = random.integers(0, shards, passages)
    parts = [Collection.build(vectors[owner == s], payload(ids[owner == s]), "Flat") for s in set(owner.tolist())]
    whole = Collection.build(vectors, payload(ids), "Flat").search(queries, k)
    for i in range(2):
        merged = merge_hits([part.search(queries[i : i + 1], k)[0] for part in parts], k)
        assert [hit.id for hit in merged] == [hit.id for hit in whole[i]]
        assert [hit.score for hit in merged] == pytest.approx([hit.score for hit in whole[i]], abs=1e-6)


def test_passages_of_one_score_are_found_by_id_at_the_cut_too():
    collection = Collection.build(np.ones((20, 4), np.float32), payload([f"p{i:02}" for i in range(20)]), "Flat")
    assert names(collection.search(np.ones((1, 4)), 3)) == [["p00", "p01", "p02"]]


def test_ties_of_two_datasets_do_not_depend_on_the_number_of_shards():
    vector = np.ones((1, 4), np.float32)
    tables = [payload(["z"], "one"), payload(["a"], "two")]
    both = Collection.build(np.ones((2, 4), np.float32), pa.concat_tables(tables), "Flat")
    parts = [Collection.build(vector, table, "Flat").search(vector, 1)[0] for table in tables]
    assert both.search(vector, 1)[0] == merge_hits(parts, 1)


def test_hits_are_merged_best_first_and_ties_by_id():
    hits = [Hit(name, score, "", None, "d") for name, score in (("c", 0.5), ("a", 0.9), ("b", 0.5))]
    assert [hit.id for hit in merge_hits([hits[:1], hits[1:], []], 2)] == ["a", "b"]


@pytest.mark.parametrize("bad", [np.ones((1, 7)), np.ones(8), np.full((1, 8), np.nan), np.full((1, 8), np.inf)])
def test_a_query_vector_that_does_not_fit_is_refused(bad):
    collection = Collection.build(np.eye(8, dtype=np.float32), payload("abcdefgh"), "Flat")
    with pytest.raises(ValueError, match="do not fit an index of width 8"):
        collection.search(bad, 3)


@pytest.mark.parametrize(("factory", "rows"), [("Flatt", 8), ("IVF64,Flat", 8), ("PQ3", 8)])
def test_a_factory_that_faiss_cannot_build_is_refused_in_one_line(factory, rows):
    with pytest.raises(ConfigError) as caught:
        Collection.build(unit(np.random.default_rng(0), rows), payload("abcdefgh"), factory)
    assert str(caught.value).startswith(f"index.factory {factory!r} with {rows} vectors")
    assert "\n" not in str(caught.value)


def test_vectors_without_payload_are_refused():
    with pytest.raises(BundleError, match="8 vectors, payload 2 rows"):
        Collection.build(np.eye(8, dtype=np.float32), payload("ab"), "Flat")


def test_a_hit_is_plain_data():
    hit = Hit("p", 0.5, "text", "title", "d")
    assert hit_record(hit) == {"id": "p", "score": 0.5, "text": "text", "title": "title", "dataset": "d"}
