"""Labelled groups as training rows, and their batches."""

from __future__ import annotations

import math

import pytest
import torch

from embedder.config.tasks import BUILTIN_TASKS
from embedder.data.records import QUERY, write_table
from embedder.training.batch_plan import BatchPart
from embedder.training.group_rows import candidate_hashes, id_hashes, known_positives, training_row
from embedder.training.group_survey import listed_key
from embedder.training.row_files import write_training_rows
from embedder.training.training_rows import NO_IDENTITY, TrainingRows
from ray_jobs.training.data import join_listed, listed_of

REWARDS = (2.0, 0.0, -1.0)


def group(task="qa", number=0, texts=("a", "b", "c"), rewards=REWARDS, relevance=(1, 0, 0), error=None):
    rewards = rewards if rewards != REWARDS else REWARDS[: len(texts)]
    fields = {"task": task, "dataset": "set", "query_id": str(number), "query": f"{task} {number}"}
    fields |= {"candidate_ids": [f"id-{text}" for text in texts], "candidate_texts": list(texts)}
    return {
        **fields,
        "relevance": list(relevance),
        "rewards": None if rewards is None else list(rewards),
        "error": error,
    }


def test_training_row_of_a_rewarded_task_has_its_rewards():
    row = training_row(group(), BUILTIN_TASKS["qa"])
    assert (row["task"], row["query"], row["candidates"]) == ("qa", "qa 0", ["a", "b", "c"])
    assert (row["relevance"], row["rewards"]) == ([1, 0, 0], [2.0, 0.0, -1.0])


def test_training_row_of_a_contrastive_task_has_known_positives():
    row = training_row(group(rewards=None), BUILTIN_TASKS["tool"])
    assert (row["relevance"], row["rewards"]) == ([1, 0, 0], None)


@pytest.mark.parametrize(
    ("fields", "task", "reason"),
    [
        ({"rewards": None, "error": "no candidates"}, "qa", "no rewards: no candidates"),
        ({"rewards": None}, "qa", "no rewards: not labelled"),
        ({"relevance": (0, 0, 0)}, "tool", "no known positive for the contrastive loss"),
        ({"rewards": (2.0, 2.0, 2.0)}, "qa", "all rewards are equal"),
        ({"rewards": (2.0,), "texts": ("a",), "relevance": (1,)}, "qa", "all rewards are equal"),
    ],
)
def test_training_row_says_why_a_group_cannot_be_trained_on(fields, task, reason):
    assert training_row(group(**fields), BUILTIN_TASKS[task]) == reason


def test_training_row_keeps_groups_without_preference_where_the_task_says_so():
    task = BUILTIN_TASKS["qa"].model_copy(update={"skip_flat": False})
    assert training_row(group(rewards=(2.0, 2.0, 2.0)), task)["rewards"] == [2.0, 2.0, 2.0]


@pytest.mark.parametrize(
    ("choice", "candidates", "relevance"),
    [
        ("keep", ["a", "b", "c", "d"], [1, 0, 0, 0]),
        ("relabel", ["a", "b", "c", "d"], [1, 1, 0, 0]),
        ("drop", ["a", "c", "d"], [1, 0, 0]),
    ],
)
def test_training_row_of_a_contrastive_task_settles_false_negatives_as_it_says(choice, candidates, relevance):
    task = BUILTIN_TASKS["tool"].model_copy(update={"reward": "gain", "false_negatives": choice})
    given = group("tool", texts=("a", "b", "c", "d"), rewards=(2.0, 2.5, 0.0, 1.0), relevance=(1, 0, 0, 0))
    row = training_row(given, task)
    assert (row["candidates"], row["relevance"]) == (candidates, relevance)
    lengths = {len(row[name]) for name in ("rewards", "text_hashes", "id_hashes", "answer_hashes")}
    assert lengths == {len(candidates)}
    # What was dropped is no in-batch negative either.
    assert set(row["known_hashes"]) == (set(keys_of("b")) if choice == "drop" else set())


def test_training_row_says_that_a_group_has_no_candidates():
    assert training_row(group(texts=(), rewards=(), relevance=()), BUILTIN_TASKS["qa"]) == "no candidates"


@pytest.fixture
def written(tmp_path):
    groups = [
        group("tool", 0, texts=("t", "u"), relevance=(0, 1)),
        group("qa", 1),
        group("qa", 2, rewards=None, error="no candidates"),
        group("tool", 3, texts=("v",), relevance=(0,)),
        group("tool", 6, texts=("w",), relevance=(1,)),
        group("qa", 4, texts=("d", "e"), rewards=(0.5, 0.0), relevance=(0, 0)),
        group("qa", 5, rewards=(1.0, 1.0, 1.0)),
    ]
    counts, left_out = write_training_rows(groups, BUILTIN_TASKS, tmp_path / "deep" / "rows.arrow", {})
    return TrainingRows(tmp_path / "deep" / "rows.arrow"), counts, left_out


def test_training_rows_and_groups_left_out_are_counted_by_task(written):
    rows, counts, left_out = written
    assert counts == {"qa": 2, "tool": 2}
    assert left_out == {
        "qa: no rewards: no candidates": 1,
        "qa: all rewards are equal": 1,
        "tool: no known positive for the contrastive loss": 1,
    }
    assert (rows.sizes, rows.group_size) == ({"qa": 2, "tool": 2}, 3)


def test_training_rows_give_tasks_the_median_spread_of_their_rewards_as_temperature(written):
    found = written[0].with_temperatures(BUILTIN_TASKS)
    spreads = [math.sqrt(14) / 3, 0.25]  # of 2, 0, -1 and of 0.5, 0
    assert found["qa"].reward_temperature == pytest.approx(sum(spreads) / 2)
    assert {**found, "qa": None} == {**BUILTIN_TASKS, "qa": None}
    given = BUILTIN_TASKS["qa"].model_copy(update={"reward_temperature": 3.0})
    plain = BUILTIN_TASKS["qa"].model_copy(update={"loss": "reference"})
    for task in (given, plain):
        assert written[0].with_temperatures({"qa": task}) == {"qa": task}


def test_training_rows_that_are_all_flat_have_a_temperature_of_one(tmp_path):
    kept = {"qa": BUILTIN_TASKS["qa"].model_copy(update={"skip_flat": False})}
    write_training_rows([group("qa", 5, rewards=(2.0, 2.0, 2.0))], kept, tmp_path / "rows.arrow", {})
    assert TrainingRows(tmp_path / "rows.arrow").with_temperatures(kept)["qa"].reward_temperature == 1.0


def test_batch_is_padded_to_the_largest_group(written):
    batch = written[0].batch([BatchPart("qa", [1, 0])])
    assert batch.queries == ["qa 4", "qa 1"]
    assert batch.candidates == ["d", "e", "e", "a", "b", "c"]
    assert batch.tasks == ["qa", "qa"]
    assert batch.reward_BM.tolist() == [[0.5, 0, 0], [2, 0, -1]]
    assert batch.positive_BM.tolist() == [[False] * 3, [True, False, False]]
    assert batch.valid_BM.tolist() == [[True, True, False], [True, True, True]]


def test_batch_of_another_task_has_its_own_rows(written):
    batch = written[0].batch([BatchPart("tool", [1, 0])])
    assert (batch.queries, batch.candidates) == (["tool 6", "tool 0"], ["w", "w", "w", "t", "u", "u"])
    assert batch.positive_BM.tolist() == [[True, False, False], [False, True, False]]


def test_batch_of_mixed_tasks_holds_the_rows_of_its_parts_in_order(written):
    batch = written[0].batch([BatchPart("qa", [1]), BatchPart("tool", [1, 0])])
    assert (batch.tasks, batch.queries) == (["qa", "tool", "tool"], ["qa 4", "tool 6", "tool 0"])
    assert batch.valid_BM.sum(1).tolist() == [2, 1, 2]


def test_identities_of_equal_texts_are_equal_and_of_others_are_not(written):
    batch = written[0].batch([BatchPart("qa", [1, 0, 1])])
    assert batch.identity_BM3.dtype == torch.long
    keys = [tuple(both) for both in batch.identity_BM3[batch.valid_BM].tolist()]
    texts = ["d", "e", "a", "b", "c", "d", "e"]
    assert len(set(zip(texts, keys, strict=True))) == len(set(keys)) == 5
    assert len({key for both in keys for key in both}) == 10
    assert batch.identity_BM3[0].tolist() == batch.identity_BM3[2].tolist()
    assert (batch.identity_BM3[~batch.valid_BM] == NO_IDENTITY).all()
    # A passage that is no worked example gives no answer: its text stands there again.
    assert (batch.identity_BM3[..., 0] == batch.identity_BM3[..., 2]).all()


def keys_of(text: str, dataset: str = "set") -> tuple[int, int]:
    """Keys of a candidate's text and id."""
    return tuple(keys[0] for keys in candidate_hashes({**group(texts=(text,)), "dataset": dataset}))


def test_identities_of_ids_differ_by_dataset():
    one, other = keys_of("a"), keys_of("a", "another set")
    assert one[0] == other[0]
    assert one[1] != other[1]


def test_known_positives_are_those_of_every_group_of_a_query_and_those_without_a_place_in_one():
    first, second = group(relevance=(1, 0, 1)), {**group(texts=("d", "e"), relevance=(0, 1)), "dataset": "set"}
    other = {**group(number=1, relevance=(0, 1, 0)), "query": "another"}
    found = known_positives([first, second, other], {("set", "0"): ["id-a", "id-z"], ("set", "9"): ["id-q"]})
    expected = {*keys_of("a"), *keys_of("c"), *keys_of("e"), keys_of("z")[1]}
    assert found == {("qa", "qa 0"): expected, ("qa", "another"): set(keys_of("b"))}


def test_training_row_keeps_the_known_positives_that_are_not_among_its_candidates(tmp_path):
    groups = [group("tool", 0, texts=("a", "b"), relevance=(1, 0)), group("tool", 0, texts=("c",), relevance=(1,))]
    write_training_rows(groups, BUILTIN_TASKS, tmp_path / "rows.arrow", {("set", "0"): ["id-z"]})
    batch = TrainingRows(tmp_path / "rows.arrow").batch([BatchPart("tool", [0, 1])])
    own_row = candidate_hashes({"dataset": "set", "candidate_texts": [], "candidate_ids": ["0"]})[1][0]
    known = [set(row) - {NO_IDENTITY} for row in batch.known_BP.tolist()]
    assert not any(own_row in row for row in batch.known_BP.tolist())
    assert known == [{*keys_of("c"), keys_of("z")[1]}, {*keys_of("a"), keys_of("z")[1]}]


def test_training_row_takes_the_query_itself_as_a_worked_example_for_no_negative():
    """Its own example is declared by `example_ids`; an equal id alone says nothing, case 04-id-collision."""
    ids = {text: candidate_hashes({**group(texts=(text,)), "candidate_ids": [text]})[1][0] for text in ("0", "own")}
    plain = training_row(group("icl"), BUILTIN_TASKS["icl"])
    with_own = training_row(group("icl"), BUILTIN_TASKS["icl"], examples=[ids["own"]])
    assert (plain["known_hashes"], with_own["known_hashes"]) == ([], [ids["own"]])


def example_group(number, answer, *texts):
    return {**group("icl", number, texts=texts, relevance=[0] * len(texts)), "answers": [answer]}


def test_training_row_of_worked_examples_knows_the_examples_that_give_the_querys_answer(tmp_path):
    first = example_group(0, "play music", "a jazz song play music", "rain weather", "a song music")
    second = example_group(1, "weather", "snow weather", "a tune play music")
    write_training_rows([first, second], BUILTIN_TASKS, tmp_path / "rows.arrow", {})
    batch = TrainingRows(tmp_path / "rows.arrow").batch([BatchPart("icl", [0, 1])])
    (music, weather, other), (second_weather, second_music, _) = batch.identity_BM3[..., 2].tolist()
    assert music == second_music and weather == second_weather
    # No query has the answer `music` alone, so that this example gives none.
    assert other == batch.identity_BM3[0, 2, 0]
    known = [set(row) - {NO_IDENTITY} for row in batch.known_BP.tolist()]
    assert known == [{music}, {weather}]


def test_known_positives_of_a_run_are_read_from_its_training_queries(tmp_path):
    for dataset, ids in (("one", ["p", "q"]), ("two", None)):
        row = dict.fromkeys(QUERY.names) | {"dataset": dataset, "query_id": "0", "positive_ids": ids}
        write_table([row], QUERY, tmp_path / f"{dataset}.parquet")
    found = join_listed(*(listed_of("old: ", tmp_path / f"{name}.parquet") for name in ("one", "two")))
    keys = [listed_key(f"old: {name}", query) for name, query in (("two", "0"), ("one", "0"), ("one", "1"))]
    assert found.positives.of(keys) == [[], sorted(id_hashes("old: one", ["p", "q"])), []]
    assert found.examples.of(keys) == [[], [], []]


def test_known_positives_of_another_group_of_the_query_are_positives_here_too():
    known = frozenset(keys_of("b")[:1])
    assert training_row(group("tool"), BUILTIN_TASKS["tool"], known)["relevance"] == [1, 1, 0]


def test_training_rows_of_no_groups_are_an_empty_file(tmp_path):
    counts, left_out = write_training_rows([], BUILTIN_TASKS, tmp_path / "rows.arrow", {})
    rows = TrainingRows(tmp_path / "rows.arrow")
    assert (counts, left_out, rows.sizes, rows.group_size) == ({}, {}, {}, 0)
