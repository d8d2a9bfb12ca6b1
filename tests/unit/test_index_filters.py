"""Filters: what they accept, and that stored and memtable rows answer them as a plain reading of the documents does."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from embedder.data.metadata import MAX_LEVELS, kind_of, metadata_json
from embedder.index.documents import Document
from embedder.index.filters import MAX_CLAUSES, MAX_DEPTH, Condition, Filter, matching
from embedder.index.metadata_index import MemtableMetadata, StoredMetadata, write_metadata
from tests.unit.index_cases import payload_of
from tests.unit.judges import quick

SCALARS = st.one_of(
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([0.5, 1.0, -2.5]),
    st.sampled_from(["", "a", "b", "ä", "𝔘", "\uffff"]),
)
FIELDS = st.sampled_from(["f", "g", "f.g", "o.f", "o.f[].g", "o[].p.f", "o"])
NAMES = st.sampled_from(["dataset", "id"])
NAMED = st.one_of(st.integers(0, 3), st.sampled_from(["0", "1", "a", "b", "\uffff"]))
"""A whole number stands for its text there."""
TEXT_BOUNDS = st.dictionaries(
    st.sampled_from(["gt", "gte", "lt", "lte"]), st.sampled_from(["", "1", "a", "\uffff"]), min_size=1
)


def of_one_kind(values):
    return [value for value in values if kind_of(value) == kind_of(values[0])]


PLAIN = st.one_of(SCALARS, st.lists(SCALARS, max_size=3).map(of_one_kind))
OBJECTS = st.recursive(
    st.dictionaries(st.sampled_from(["f", "g", "f.g"]), PLAIN, max_size=3),
    lambda inner: st.dictionaries(
        st.sampled_from(["f", "o", "p"]), st.one_of(PLAIN, inner, st.lists(inner, max_size=2)), max_size=3
    ),
    max_leaves=4,
)
DOCUMENTS = st.lists(OBJECTS, max_size=12)
BOUNDS = st.one_of(
    st.dictionaries(st.sampled_from(["gt", "gte", "lt", "lte"]), st.sampled_from([-2, 0, 0.5, 1]), min_size=1),
    st.dictionaries(st.sampled_from(["gt", "gte", "lt", "lte"]), st.sampled_from(["", "a", "ä", "\uffff"]), min_size=1),
)
MATCHES = st.one_of(
    SCALARS.map(lambda value: {"value": value}),
    st.lists(SCALARS, max_size=3).map(lambda values: {"any": values}),
    st.lists(SCALARS, max_size=3).map(lambda values: {"except": values}),
)
CONDITIONS = st.one_of(
    st.tuples(FIELDS, MATCHES).map(lambda pair: {"key": pair[0], "match": pair[1]}),
    st.tuples(FIELDS, BOUNDS).map(lambda pair: {"key": pair[0], "range": pair[1]}),
    st.tuples(NAMES, NAMED).map(lambda pair: {"key": pair[0], "match": {"value": pair[1]}}),
    st.tuples(NAMES, st.lists(NAMED, max_size=3)).map(lambda pair: {"key": pair[0], "match": {"any": pair[1]}}),
    st.tuples(NAMES, st.lists(NAMED, max_size=3)).map(lambda pair: {"key": pair[0], "match": {"except": pair[1]}}),
    st.tuples(NAMES, TEXT_BOUNDS).map(lambda pair: {"key": pair[0], "range": pair[1]}),
    st.tuples(
        st.sampled_from(["is_empty", "is_null"]), st.sampled_from(["f", "g", "o", "o.f", "o[].p", "id", "no"])
    ).map(lambda pair: {pair[0]: {"key": pair[1]}}),
    st.lists(NAMED, max_size=3).map(lambda ids: {"has_id": [one for one in ids if one != ""]}),
)
OWN = {"key", "is_empty", "is_null", "has_id"}
FILTERS = st.recursive(
    CONDITIONS,
    lambda parts: st.dictionaries(
        st.sampled_from(["must", "should", "must_not"]), st.lists(parts, max_size=3), max_size=3
    ),
    max_leaves=6,
).map(lambda part: {"must": [part]} if part.keys() & OWN else part)


def same(one, other):
    return not isinstance(one, dict) and kind_of(one) == kind_of(other) and one == other


def read_off(metadata):
    """The values of each path, an object being "{}" where it has any."""
    found = {}
    for name, value in metadata.items():
        for one in value if isinstance(value, list) else [value]:
            inner = read_off(one) if isinstance(one, dict) else {}
            if inner or not isinstance(one, dict):
                found.setdefault(name, []).append(inner or one)
            for path, values in inner.items():
                found.setdefault(f"{name}.{path}", []).extend(values)
    return found


def holds(part, fields):
    """A filter read off plainly, over the lists of values of each field."""
    if "has_id" in part:
        return fields["id"][-1] in map(str, part["has_id"])
    if part.keys() & {"is_empty", "is_null"}:
        ((_, named),) = part.items()
        return not fields.get(named["key"].replace("[]", ""))
    if "key" not in part:
        return (
            all(holds(one, fields) for one in part.get("must", []))
            and (not part.get("should") or any(holds(one, fields) for one in part["should"]))
            and not any(holds(one, fields) for one in part.get("must_not", []))
        )
    values = fields.get(part["key"].replace("[]", ""), [])
    if part["key"] in ("dataset", "id") and "match" in part:
        ((how, wanted),) = part["match"].items()
        part = {"match": {how: [str(one) for one in wanted] if isinstance(wanted, list) else str(wanted)}}
    match part:
        case {"match": {"value": wanted}}:
            return any(same(value, wanted) for value in values)
        case {"match": {"any": wanted}}:
            return any(same(value, one) for value in values for one in wanted)
        case {"match": {"except": barred}}:
            return bool(values) and not any(same(value, one) for value in values for one in barred)
    compare = {
        "gt": lambda a, b: a > b,
        "gte": lambda a, b: a >= b,
        "lt": lambda a, b: a < b,
        "lte": lambda a, b: a <= b,
    }
    bounds = part["range"]
    kind = kind_of(next(iter(bounds.values())))
    return any(
        not isinstance(value, dict)
        and kind_of(value) == kind
        and all(compare[name](value, bound) for name, bound in bounds.items())
        for value in values
    )


@quick
@given(DOCUMENTS, FILTERS)
def test_filter_of_stored_and_memtable_rows_fits_as_their_documents_do(tmp_path_factory, metadata, wanted):
    documents = [Document(id=str(i), text="x", dataset="ab"[i % 2], metadata=one) for i, one in enumerate(metadata)]
    path = tmp_path_factory.mktemp("metadata") / "metadata.arrow"
    payload = payload_of(documents)
    write_metadata(payload, path)
    memtable = MemtableMetadata()
    for one in documents:
        memtable.add(*one.name, metadata_json(one.metadata))
    plain = []
    for one in documents:
        plain.append(holds(wanted, {**read_off(one.metadata), "dataset": [one.dataset], "id": [one.id]}))
    checked = Filter.model_validate(wanted)
    assert matching(checked, StoredMetadata(path, len(documents), payload["id"].combine_chunks())).tolist() == plain
    assert matching(checked, memtable).tolist() == plain


def nested(depth):
    return {"must": [nested(depth - 1)]} if depth > 1 else {}


def test_filter_may_be_as_deep_and_as_long_as_the_limits():
    one = {"key": "f", "match": {"value": 1}}
    assert Filter.model_validate(nested(MAX_DEPTH)).depth == MAX_DEPTH
    assert Filter.model_validate({"should": [one] * MAX_CLAUSES}).clauses == MAX_CLAUSES
    with pytest.raises(ValidationError, match=f"nested {MAX_DEPTH + 1} deep; at most {MAX_DEPTH}"):
        Filter.model_validate(nested(MAX_DEPTH + 1))
    with pytest.raises(ValidationError, match=f"at most {MAX_CLAUSES}"):
        Filter.model_validate({"should": [one] * (MAX_CLAUSES + 1)})


def test_filter_of_any_depth_is_refused_and_not_run_out_of_stack_on():
    deep: dict = {}
    for _ in range(500):
        deep = {"must": [deep]}
    with pytest.raises(ValidationError):
        Filter.model_validate(deep)
    with pytest.raises(ValidationError):
        Filter.model_validate_json('{"must":[' * 100_000 + "]}" * 100_000)


BAD_CONDITIONS = {
    "no condition": {"key": "f"},
    "two conditions": {"key": "f", "match": {"value": 1}, "range": {"gt": 1}},
    "no value": {"key": "f", "match": {}},
    "two values": {"key": "f", "match": {"value": 1, "any": [1]}},
    "empty range": {"key": "f", "range": {}},
    "mixed range": {"key": "f", "range": {"gt": 1, "lt": "b"}},
    "boolean range": {"key": "f", "range": {"gt": True}},
    "nan": {"key": "f", "match": {"value": float("nan")}},
    "infinity": {"key": "f", "range": {"lt": float("inf")}},
    "an object": {"key": "f", "match": {"value": {"a": 1}}},
    "no name": {"key": "", "match": {"value": 1}},
    "no name but a list": {"key": "[]", "match": {"value": 1}},
    "a position": {"key": "f[0].g", "match": {"value": 1}},
    "unknown key": {"key": "f", "matches": {"value": 1}},
    "lone surrogate": {"key": "f", "match": {"value": "\ud800"}},
    "huge integer": {"key": "f", "match": {"value": 2**53 + 1}},
}


@pytest.mark.parametrize("condition", BAD_CONDITIONS.values(), ids=BAD_CONDITIONS.keys())
def test_filter_condition_that_means_nothing_is_refused(condition):
    with pytest.raises(ValidationError):
        Condition.model_validate(condition)


def at_depth(levels):
    """Metadata of so many objects within each other."""
    fields = {"f": 1}
    for _ in range(levels - 1):
        fields = {"f": fields}
    return fields


BAD_METADATA = {
    "a list": [1],
    "null in a list": {"f": [None]},
    "much in all": {str(i): ["x" * 1024] for i in range(64)},
    "a list in a list": {"f": [[1]]},
    "mixed list": {"f": [1, "a"]},
    "an object among values": {"f": [1, {"g": 1}]},
    "null in a list of an object": {"f": {"g": [None]}},
    "no name within": {"f": {"": 1}},
    "a position in a name": {"f": {"g[0]": 1}},
    "a list in a name": {"f[]": 1},
    "deep": at_depth(MAX_LEVELS + 1),
    "very deep": at_depth(100_000),
    "many fields within": {"f": [{str(i): i} for i in range(64)]},
    "long path": {"f" * 100: {"g" * 100: 1}},
    "nan": {"f": float("nan")},
    "reserved name": {"dataset": "x"},
    "no name": {"": 1},
    "long text": {"f": "x" * 1025},
    "many fields": {str(i): i for i in range(65)},
    "huge integer": {"f": -(2**53) - 1},
    "lone surrogate": {"f": "\ud800"},
}


@pytest.mark.parametrize("metadata", BAD_METADATA.values(), ids=BAD_METADATA.keys())
def test_metadata_that_could_not_be_asked_for_is_refused(metadata):
    with pytest.raises(ValueError, match="metadata"):
        metadata_json(metadata)
    with pytest.raises(ValidationError):
        Document.model_validate({"id": "a", "text": "x", "metadata": metadata})


@pytest.mark.parametrize("fields", [{"id": ""}, {"id": "\ud800"}, {"text": ""}, {"id": "x" * 513}, {"colour": "red"}])
def test_document_that_could_not_be_kept_is_refused(fields):
    with pytest.raises(ValidationError):
        Document.model_validate({"id": "a", "text": "x", **fields})


def test_metadata_is_kept_as_it_was_given():
    given_fields = {"year": 2020, "share": 0.5, "open": True, "tags": ["a", "ä"]}
    assert json.loads(metadata_json(given_fields)) == given_fields
    assert metadata_json({"page_label": None, "year": 2020}) == '{"year":2020}'
    assert metadata_json({}) is metadata_json({"page_label": None}) is None
    assert metadata_json(None) is None


def test_metadata_may_hold_objects_as_deep_as_the_limit():
    given_fields = {"author": {"name": "Ada", "born": None, "papers": [{"year": 1843}, {"year": 1844}]}}
    kept = {"author": {"name": "Ada", "papers": [{"year": 1843}, {"year": 1844}]}}
    assert json.loads(metadata_json(given_fields)) == kept
    assert Document.model_validate({"id": "a", "text": "x", "metadata": given_fields}).metadata == kept
    assert json.loads(metadata_json(at_depth(MAX_LEVELS))) == at_depth(MAX_LEVELS)
    with pytest.raises(
        ValueError, match=r"metadata\.author\.papers\.1\.year\.0: a value is a text, a number or a boolean"
    ):
        metadata_json({"author": {"papers": [{"year": 1843}, {"year": [[1]]}]}})


def test_metadata_number_is_not_a_boolean():
    memtable = MemtableMetadata()
    memtable.add("a", "", '{"f":1}')
    memtable.add("b", "", '{"f":true}')
    for value, rows in ((1, [0]), (1.0, [0]), (True, [1]), (False, [])):
        assert np.array_equal(memtable.equal("f", value), rows)
