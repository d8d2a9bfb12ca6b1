"""The group of one query: what it holds, what it never holds, and from where it was drawn."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedder.config.mine import MineConfig
from embedder.data.records import GROUP
from embedder.mining import candidates
from embedder.mining.candidates import highest_score, is_duplicate, normalise, word_overlap
from tests.unit.judges import quick

PASSAGES = {f"p{i}": f"word{i} thing{i}" for i in range(40)}


def query(positives=(), query_id="q", examples=()) -> dict[str, object]:
    fields = {"task": "qa", "dataset": "d", "query_id": query_id, "query": "text", "answers": ["a"]}
    return {
        **fields,
        "positive_ids": list(positives),
        "pool_ids": None,
        "example_ids": list(examples),
        "teacher_scores": None,
    }


def ranking(numbers):
    return [(f"p{i}", 1.0 - rank / 100) for rank, i in enumerate(numbers)]


def make_group(asked, rankings, passages, config, scores=None):
    """The group where all passages are equally far from the query, unless their dense scores are given."""
    return candidates.make_group(asked, rankings, passages, config, scores or dict.fromkeys(passages, 0.0))


def ids(mined):
    group, _ = mined
    return group["candidate_ids"]


orders = st.permutations(range(40)).flatmap(lambda order: st.integers(0, 40).map(lambda length: order[:length]))
configs = st.builds(
    MineConfig,
    group_size=st.integers(2, 8),
    window=st.sampled_from([(0, 5), (1, 9), (2, 50), (30, 60)]),
    lexical_share=st.sampled_from([0.0, 0.5, 1.0]),
    duplicate_overlap=st.sampled_from([0.5, 0.9]),
    seed=st.integers(0, 3),
)
texts = st.lists(
    st.sampled_from(["red fox", "Red, fox!", "red fox river", "dog", "a b c d", "a b c d e"]), min_size=40, max_size=40
)


@quick
@given(orders, orders, st.lists(st.integers(0, 39), max_size=9, unique=True), configs, texts)
def test_make_group_never_holds_what_it_must_not(lexical, dense, positives, config, words):
    passages = {f"p{i}": text for i, text in enumerate(words)}
    asked = query([f"p{i}" for i in positives if i != 7], query_id="p8", examples=["p7"])
    group, _ = make_group(asked, {"lexical": ranking(lexical), "dense": ranking(dense)}, passages, config)
    known = asked["positive_ids"]
    assert set(group) == set(GROUP.names)
    chosen = group["candidate_ids"]
    assert len(chosen) <= config.group_size
    assert len(set(chosen)) == len(chosen)
    assert group["candidate_texts"] == [passages[name] for name in chosen]
    first = known[: config.group_size - 1]
    assert chosen[: len(first)] == first
    negatives = [name for name, label in zip(chosen, group["relevance"], strict=True) if not label]
    assert group["relevance"] == [1] * (len(chosen) - len(negatives)) + [0] * len(negatives)
    assert not {"p7", *known} & set(negatives)
    assert set(negatives) <= {f"p{i}" for i in [*lexical, *dense]}
    earlier = [normalise(passages[name]) for name in known]
    for name in negatives:
        assert not is_duplicate(normalise(passages[name]), earlier, config.duplicate_overlap)
        earlier.append(normalise(passages[name]))


@quick
@given(orders, orders, configs)
def test_make_group_is_a_pure_function_of_rankings_and_seed(lexical, dense, config):
    rankings = {"lexical": ranking(lexical), "dense": ranking(dense)}
    once = make_group(query(["p1"]), rankings, PASSAGES, config)
    assert make_group(query(["p1"]), rankings, PASSAGES, config) == once


def test_make_group_draws_differently_for_seeds_and_queries():
    rankings = {"lexical": ranking(range(40)), "dense": ranking(reversed(range(40)))}
    drawn = {tuple(ids(make_group(query(["p1"]), rankings, PASSAGES, MineConfig(seed=seed)))) for seed in range(6)}
    drawn |= {tuple(ids(make_group(query(["p1"], f"q{i}"), rankings, PASSAGES, MineConfig()))) for i in range(6)}
    assert len(drawn) >= 11


def test_make_group_takes_negatives_from_the_window_while_it_lasts():
    rankings = {"lexical": ranking(range(40)), "dense": ranking(range(40))}
    config = MineConfig(group_size=8, window=(10, 20))
    chosen = ids(make_group(query(["p0"]), rankings, PASSAGES, config))
    assert chosen[0] == "p0"
    assert set(chosen[1:]) <= {f"p{i}" for i in range(10, 21)}


def test_make_group_fills_up_from_the_ranks_before_a_window_that_is_too_large():
    rankings = {"lexical": ranking(range(5)), "dense": []}
    chosen = ids(make_group(query(["p0"]), rankings, PASSAGES, MineConfig(group_size=4, window=(4, 9))))
    assert chosen == ["p0", "p4", "p3", "p2"]


def test_make_group_without_positives_takes_half_from_the_head_of_the_rankings():
    rankings = {"lexical": ranking(range(20)), "dense": ranking(range(20, 40))}
    for seed in range(5):
        chosen = ids(make_group(query(), rankings, PASSAGES, MineConfig(group_size=8, seed=seed)))
        assert chosen[:4] == ["p0", "p20", "p1", "p21"]
        assert len(chosen) == 8


def test_make_group_takes_the_lexical_share_of_negatives():
    rankings = {"lexical": ranking(range(20)), "dense": ranking(range(20, 40))}
    for share, own in ((1.0, range(20)), (0.0, range(20, 40))):
        chosen = ids(make_group(query(["p0"]), rankings, PASSAGES, MineConfig(lexical_share=share, window=(1, 19))))
        assert set(chosen[1:]) <= {f"p{i}" for i in own}


def test_make_group_leaves_room_for_one_negative():
    positives = [f"p{i}" for i in range(9)]
    mined = make_group(query(positives), {"lexical": ranking(range(40))}, PASSAGES, MineConfig(group_size=4))
    assert ids(mined)[:3] == positives[:3]
    assert mined[0]["relevance"] == [1, 1, 1, 0]
    assert ids(mined)[3] not in positives


def test_make_group_counts_what_it_kept_out():
    passages = {"p0": "red fox", "p1": "Red fox!", "p2": "a dog", "p3": "A dog.", "p4": "river"}
    rankings = {"lexical": ranking(range(5)), "dense": ranking(range(5))}
    mined = make_group(query(["p0"], examples=["p4"]), rankings, passages, MineConfig(group_size=8, window=(0, 9)))
    assert len(ids(mined)) == 2
    assert mined[1] == {"known": 2, "near_positives": 0, "duplicates": 2}


SCORES = {"p0": 0.8, "p1": 0.5, "p2": 0.77, "p3": 0.76, "p4": 0.9, "p5": 0.75}
"""The best positive is p0, so that 0.76 is the most that a negative may have at a share of 0.95."""


@pytest.mark.parametrize(
    ("share", "left", "count"), [(0.95, {"p3", "p5"}, 2), (1.0, {"p2", "p3", "p5"}, 1), (None, {*SCORES}, 0)]
)
def test_make_group_leaves_out_and_counts_what_scores_above_a_share_of_the_best_positive(share, left, count):
    rankings = {"lexical": ranking(range(6)), "dense": ranking(range(6))}
    size = len({"p0", "p1", *left})
    config = MineConfig(window=(0, 9), lexical_share=1.0, positive_share=share, group_size=size)
    group, kept_out = make_group(query(["p1", "p0"]), rankings, PASSAGES, config, SCORES)
    assert set(group["candidate_ids"]) == {"p0", "p1", *left}
    assert kept_out["near_positives"] == count  # once, though each stands in both rankings


def test_make_group_takes_what_is_near_where_nothing_else_is_left_the_farthest_first():
    rankings = {"lexical": ranking(range(6)), "dense": ranking(range(6))}
    config = MineConfig(window=(0, 9), positive_share=0.95, group_size=5)
    group, kept_out = make_group(query(["p1", "p0"]), rankings, PASSAGES, config, SCORES)
    assert set(group["candidate_ids"]) == {"p0", "p1", "p3", "p5", "p2"} and kept_out["near_positives"] == 1


def test_make_group_of_a_query_without_a_positive_keeps_what_scores_highest():
    mined = make_group(query(), {"lexical": [], "dense": ranking(range(6))}, PASSAGES, MineConfig(), SCORES)
    assert set(ids(mined)) == {*SCORES} and mined[1]["near_positives"] == 0


def test_highest_score_is_a_share_of_that_of_the_best_positive():
    assert highest_score(["p1", "p0"], SCORES, 0.5) == 0.4
    assert highest_score(["p1"], SCORES, None) == highest_score([], SCORES, 0.5) == float("inf")


def test_make_group_takes_a_passage_of_the_querys_own_id_as_any_other():
    """An id is a name within its table, case 04-id-collision."""
    rankings = {"lexical": ranking(range(1, 5)), "dense": ranking(range(1, 5))}
    mined = make_group(query(["p0"], query_id="p1"), rankings, PASSAGES, MineConfig(group_size=5, window=(0, 9)))
    assert set(ids(mined)) == {"p0", "p1", "p2", "p3", "p4"}


def test_make_group_without_rankings_holds_only_positives():
    mined = make_group(query(["p3"]), {"lexical": [], "dense": []}, PASSAGES, MineConfig())
    assert ids(mined) == ["p3"]


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("  The Fox,\n\tthe DOG!  ", "the fox the dog"),
        ("snake_case and café-au-lait", "snake case and café au lait"),
        ("...", "..."),
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
def test_word_overlap_is_that_of_the_word_sets(one, other, share):
    assert word_overlap(one, other) == word_overlap(other, one) == share


def test_is_duplicate_a_passage_that_overlaps_by_the_threshold_is_a_duplicate():
    assert is_duplicate("b c d", ["x", "a b c"], 0.5)
    assert not is_duplicate("b c d", ["x", "a b c"], 0.51)
    assert not is_duplicate("b c d", [], 0.1)


@pytest.mark.parametrize(
    ("text", "copy"),
    [
        pytest.param("un cafe\u0301 noir", "Un caf\u00e9 noir!", id="accents"),
        pytest.param("中国的首都是北京，有两千万人口。", "中国的首都是北京 有两千万人口", id="Chinese punctuation"),
        pytest.param(
            "中国的首都是北京，有两千万人口。", "中国的首都是北京，有两千万人口了。", id="Chinese with a word more"
        ),
        pytest.param(
            "東京は日本の首都で、人口は千四百万人です。", "東京は日本の首都で人口は千四百万人です", id="Japanese"
        ),
        pytest.param("ﾃｽﾄ ２０２４", "テスト 2024", id="width"),
        pytest.param("the well-known “Paris”", "the well known Paris", id="hyphen and quotes"),
        pytest.param("हिन्दी भाषा।", "हिन्दी भाषा", id="Hindi"),
    ],
)
def test_is_duplicate_finds_copies_in_every_script(text, copy):
    assert is_duplicate(normalise(copy), [normalise(text)], 0.9)


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("中国的首都是北京，有两千万人口。", "日本的首都是东京，有一千四百万人口。"),
        ("हिन्दी", "हिन्दू"),
        ("C++ tutorial", "C tutorial"),
        ("+", "-"),
        ("?!", "..."),
        ("😀", "😢"),
    ],
)
def test_is_duplicate_keeps_texts_that_differ(text, other):
    assert not is_duplicate(normalise(text), [normalise(other)], 0.9)


@pytest.mark.parametrize("positives", [[], ["p0"]])
def test_make_group_changes_for_a_new_passage_only_where_it_is_drawn_or_takes_the_place_of_another(positives):
    """One passage enters both rankings at rank 10, so that the last one of the window leaves it."""
    config, changed = MineConfig(group_size=6, window=(2, 30)), 0
    before, after = list(range(40)), [*range(10), 99, *range(10, 39)]
    passages = {**PASSAGES, "p99": "word99 thing99"}
    for number in range(100):
        asked = query(positives, f"q{number}")
        old, new = (
            ids(make_group(asked, {"lexical": ranking(order), "dense": ranking(order)}, passages, config))
            for order in (before, after)
        )
        if "p99" not in new and "p30" not in old:
            assert new == old
        changed += new != old
    assert 0 < changed < 60
