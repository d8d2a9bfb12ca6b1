"""Which passages count as copies of a positive."""

from __future__ import annotations

import pytest

from embedder.mining.filters import is_duplicate, normalise, overlap


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("  The Fox,\n\tthe DOG!  ", "the fox the dog"),
        ("snake_case and café-au-lait", "snake_case and café au lait"),
        ("...", ""),
    ],
)
def test_normalise_layout_case_and_punctuation_do_not_count(text, plain):
    assert normalise(text) == plain


@pytest.mark.parametrize(
    ("one", "other", "share"),
    [
        ("a b c", "a b c", 1.0),
        ("a b c", "c b a a", 1.0),
        ("a b c", "b c d", 0.5),
        ("a", "b", 0.0),
        ("", "", 1.0),
        ("a", "", 0.0),
    ],
)
def test_overlap_is_that_of_the_word_sets(one, other, share):
    assert overlap(one, other) == overlap(other, one) == share


def test_is_duplicate_a_passage_that_overlaps_by_the_threshold_is_a_duplicate():
    assert is_duplicate("b c d", ["x", "a b c"], 0.5)
    assert not is_duplicate("b c d", ["x", "a b c"], 0.51)
    assert not is_duplicate("b c d", [], 0.1)
