"""Which groups are labelled together."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from embedder.config.endpoints import LlmEndpoint
from embedder.config.run import LlmConfig
from embedder.config.tasks import BUILTIN_TASKS
from embedder.data.records import group_id
from embedder.labelling.units import join_units, missing_of, plan_units, unit_tokens, written_tokens
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
    units = [list(range(sum(sizes[:i]), sum(sizes[: i + 1]))) for i in range(len(sizes))]
    blocks = join_units(units, block_rows)
    assert [unit for block in blocks for unit in block] == units
    for block in blocks[:-1]:
        *others, last = [len(unit) for unit in block]
        assert sum(others) + last >= block_rows > sum(others)


def test_missing_of_units_keeps_what_is_missing_in_its_unit():
    assert missing_of([[3, 1], [0, 2], [4]], [True, False, True, True, False]) == [[3], [0, 2]]


def test_plan_units_nothing_makes_nothing():
    assert (plan_units([], 8), missing_of([], []), join_units([], 8)) == ([], [], [])


TOKEN = "abcd"
"""Four characters, which are taken for a token."""


def test_unit_tokens_counted_by_hand():
    """Two passages of 10 tokens, one of them in both groups; queries of 3 and outputs of 5, of which 4 are read.

    The tree reads 20 tokens of passages; and for each group, with each of its candidates and once without, a query and
    an output for the desired one and each of 2 samples.
    """
    task = BUILTIN_TASKS["chat"]
    task = task.model_copy(update={"template": task.template.model_copy(update={"input": ""}), "max_output_tokens": 5})
    shared, other = TOKEN * 10, TOKEN * 9 + "abce"
    groups = [
        group("chat", "d", i, texts) | {"query": TOKEN * 3, "answers": [TOKEN * 7]}
        for i, texts in enumerate([[shared, other], [shared]])
    ]
    assert unit_tokens(groups, task, 2, None) == 20 + (3 + 2) * (3 + 3 * 4)
    likelihood = task.model_copy(update={"reward": "likelihood"})
    assert unit_tokens(groups, likelihood, 2, None) == 20 + (3 + 2) * (3 + 4)
    short = [each | {"answers": [TOKEN * 2]} for each in groups]
    assert unit_tokens(short, task, 2, None) == 20 + (3 + 2) * (3 + 3 * 2)


def test_tokens_of_a_server_counted_by_hand():
    """Of a query of 3 tokens, a passage of 10 and an output of 5 with 2 samples: each output is read with its prompt.

    Three outputs, without the passage and with it, and once for the samples; a token is written for each score.
    """
    endpoint = LlmEndpoint(url="http://127.0.0.1:1/v1", model="m")
    llm = LlmConfig(model="m", endpoint=endpoint, max_prefix_tokens=900)
    task = BUILTIN_TASKS["chat"]
    bare = task.template.model_copy(update={"input": "", "context": ""})
    task = task.model_copy(update={"template": bare, "max_output_tokens": 5, "shots": 0, "reward": "rank"})
    groups = [group("chat", "d", 0, [TOKEN * 10]) | {"query": TOKEN * 3, "answers": [TOKEN * 7]}]
    assert unit_tokens(groups, task, 2, llm) == 3 * ((3 + 5) + (13 + 5)) + 3
    assert written_tokens(groups, task, 2, llm) == 3 * 2 + 2 * 5
    assert written_tokens(groups, task.model_copy(update={"reward": "likelihood"}), 2, llm) == 2
    assert written_tokens(groups, task, 2, None) == 0
