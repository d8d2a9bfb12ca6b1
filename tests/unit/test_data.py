"""Labelled groups as training rows, and their batches."""

from __future__ import annotations

import pytest
import torch

from embedder.tasks import BUILTIN_TASKS
from embedder.training.data import TrainingRows, training_row, write_training_rows


def group(task="qa", number=0, texts=("a", "b", "c"), rewards=(2.0, 0.0, -1.0), relevance=(1, 0, 0), error=None):
    fields = {"task": task, "query": f"{task} {number}", "candidate_texts": list(texts), "relevance": list(relevance)}
    return {**fields, "rewards": None if rewards is None else list(rewards), "error": error}


def test_a_rewarded_task_trains_on_its_rewards():
    row = training_row(group(), BUILTIN_TASKS["qa"])
    assert row == {"task": "qa", "query": "qa 0", "candidates": ["a", "b", "c"], "rewards": [2.0, 0.0, -1.0]}


def test_a_contrastive_task_trains_on_known_positives():
    assert training_row(group(rewards=None), BUILTIN_TASKS["tool"])["rewards"] == [1.0, 0.0, 0.0]


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
def test_a_group_that_cannot_be_trained_on_says_why(fields, task, reason):
    assert training_row(group(**fields), BUILTIN_TASKS[task]) == reason


def test_a_task_may_keep_groups_without_preference():
    task = BUILTIN_TASKS["qa"].model_copy(update={"skip_flat": False})
    assert training_row(group(rewards=(2.0, 2.0, 2.0)), task)["rewards"] == [2.0, 2.0, 2.0]


def test_a_rewarded_group_without_candidates_says_so():
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
    counts, left_out = write_training_rows(groups, BUILTIN_TASKS, tmp_path / "deep" / "rows.arrow")
    return TrainingRows(tmp_path / "deep" / "rows.arrow"), counts, left_out


def test_rows_and_groups_left_out_are_counted_by_task(written):
    rows, counts, left_out = written
    assert counts == {"qa": 2, "tool": 2}
    assert left_out == {
        "qa: no rewards: no candidates": 1,
        "qa: all rewards are equal": 1,
        "tool: no known positive for the contrastive loss": 1,
    }
    assert (rows.sizes, rows.group_size) == ({"qa": 2, "tool": 2}, 3)


def test_a_batch_is_padded_to_the_largest_group(written):
    batch = written[0].batch("qa", [1, 0])
    assert batch.queries == ["qa 4", "qa 1"]
    assert batch.candidates == ["d", "e", "e", "a", "b", "c"]
    assert batch.reward_BM.tolist() == [[0.5, 0, 0], [2, 0, -1]]
    assert batch.valid_BM.tolist() == [[True, True, False], [True, True, True]]


def test_a_batch_of_another_task_has_its_own_rows(written):
    batch = written[0].batch("tool", [1, 0])
    assert (batch.queries, batch.candidates) == (["tool 6", "tool 0"], ["w", "w", "w", "t", "u", "u"])
    assert batch.reward_BM.tolist() == [[1, 0, 0], [0, 1, 0]]


def test_equal_texts_have_equal_keys_and_others_do_not(written):
    batch = written[0].batch("qa", [1, 0, 1])
    assert batch.key_BM.dtype == torch.long
    keys = batch.key_BM.flatten().tolist()
    assert len(set(zip(batch.candidates, keys, strict=True))) == len(set(keys)) == len(set("abcde"))
    assert batch.key_BM[0].tolist() == batch.key_BM[2].tolist()


def test_no_groups_make_an_empty_file(tmp_path):
    counts, left_out = write_training_rows([], BUILTIN_TASKS, tmp_path / "rows.arrow")
    rows = TrainingRows(tmp_path / "rows.arrow")
    assert (counts, left_out, rows.sizes, rows.group_size) == ({}, {}, {}, 0)
