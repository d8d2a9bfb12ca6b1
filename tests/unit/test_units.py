"""Which groups are labelled together."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from embedder.data.records import group_id
from embedder.labelling.units import join_units, plan_units
from tests.unit.judges import quick


def group(task: str, dataset: str, number: int, texts: list[str]) -> dict[str, object]:
    return {
        "task": task,
        "dataset": dataset,
        "query_id": f"q{number}",
        "query": f"query {number}",
        "answers": ["a"],
        "candidate_ids": [f"p{i}" for i in range(len(texts))],
        "candidate_texts": texts,
        "relevance": [0] * len(texts),
    }


some_groups = st.lists(
    st.builds(
        group,
        st.sampled_from(["qa", "chat"]),
        st.sampled_from(["d", "e"]),
        st.integers(0, 5),
        st.lists(st.sampled_from(["one", "two", "three", "four"]), max_size=3),
    ),
    max_size=20,
)


@quick
@given(some_groups, st.integers(1, 6))
def test_plan_units_is_a_partition_by_task_and_dataset_and_full_but_for_the_last(groups, size):
    units = plan_units(groups, size)
    assert sorted(position for unit in units for position in unit) == list(range(len(groups)))
    kinds = [{(groups[position]["task"], groups[position]["dataset"]) for position in unit} for unit in units]
    assert all(len(kind) == 1 for kind in kinds)
    for unit, kind, following in zip(units, kinds, kinds[1:], strict=False):
        assert len(unit) == size or (kind != following and len(unit) < size)


@quick
@given(some_groups, st.integers(1, 6), st.randoms(use_true_random=False))
def test_plan_units_does_not_depend_on_the_order_of_the_rows(groups, size, random):
    order = list(range(len(groups)))
    random.shuffle(order)
    other = [groups[i] for i in order]
    expected = [[group_id(groups[position]) for position in unit] for unit in plan_units(groups, size)]
    assert [[group_id(other[position]) for position in unit] for unit in plan_units(other, size)] == expected


def test_plan_units_groups_with_the_same_candidates_stand_side_by_side():
    texts = [[f"text {i % 4} {part}" for part in range(3)] for i in range(16)]
    groups = [group("qa", "d", i, texts[i]) for i in range(16)]
    assert [{position % 4 for position in unit} for unit in plan_units(groups, 4)] in [
        [{i} for i in order] for order in _orders(4)
    ]


def _orders(count: int) -> list[list[int]]:
    if count == 0:
        return [[]]
    return [[*order[:i], count - 1, *order[i:]] for order in _orders(count - 1) for i in range(count)]


@quick
@given(st.lists(st.integers(1, 5), max_size=12), st.integers(1, 9))
def test_join_units_blocks_are_whole_units_in_order_and_no_smaller_than_asked_for_but_the_last(sizes, block_rows):
    units = {10 + i: list(range(sum(sizes[:i]), sum(sizes[: i + 1]))) for i in range(len(sizes))}
    blocks = join_units(units, block_rows)
    assert [number for block in blocks for number in block] == list(units)
    for block in blocks[:-1]:
        *others, last = [len(units[number]) for number in block]
        assert sum(others) + last >= block_rows > sum(others)


def test_plan_units_nothing_makes_nothing():
    assert (plan_units([], 8), join_units({}, 8)) == ([], [])
