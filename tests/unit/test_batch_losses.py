"""From a batch to losses: whose candidates count against whom, and what the encoder is given to read."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from embedder.config.tasks import BUILTIN_TASKS
from embedder.models.encoder import load_encoder
from embedder.training.losses import Scores, contrastive
from embedder.training.objective import Objective, batch_scores, gather_groups
from embedder.training.training_rows import NO_IDENTITY, Batch
from tests.unit.judges import quick

TOOL = Objective(BUILTIN_TASKS, temperature=0.1)


def batch(groups: list[list[str]], known: dict[int, str] | None = None, tasks: list[str] | None = None) -> Batch:
    """Groups of texts, the first one a known positive; "" pads.

    A text may be `id=text`, or `text>answer`; without an id it has one of its own. `known`: a further known positive of
    a query, `id=`, or its answer, `>answer`.
    """
    answers = {text: text.partition(">")[2] for group in groups for text in group}
    given = [[text.partition(">")[0].rpartition("=") for text in group] for group in groups]
    names = sorted({part for group in given for one in group for part in one})
    number = {name: position for position, name in enumerate(names)}
    answer_number = {answer: 5000 + position for position, answer in enumerate(sorted(set(answers.values()) - {""}))}
    hashes = [
        [
            [
                number[text],
                1000 + number[name] if name else 2000 + 10 * b + m,
                answer_number.get(answers[whole], number[text]),
            ]
            for m, ((name, _, text), whole) in enumerate(zip(group, groups[b], strict=True))
        ]
        for b, group in enumerate(given)
    ]
    known_ids = {
        b: answer_number[name[1:]] if name[0] == ">" else 1000 + number[name.removesuffix("=")]
        for b, name in (known or {}).items()
    }
    return Batch(
        tasks=tasks or ["tool"] * len(groups),
        queries=[f"query {i}" for i in range(len(groups))],
        candidates=[text or "pad" for group in given for _, _, text in group],
        reward_BM=torch.zeros(len(groups), len(groups[0])),
        positive_BM=torch.tensor([[m == 0 for m in range(len(group))] for group in groups]),
        valid_BM=torch.tensor([[bool(text) for text in group] for group in groups]),
        identity_BM3=torch.tensor(hashes),
        known_BP=torch.tensor([[known_ids.get(b, NO_IDENTITY)] for b in range(len(groups))]),
    )


def scores_of(query_BD, own_KD, made: Batch, temperature: float, in_batch: bool = True) -> Scores:
    """The scores of a batch in one process."""
    groups, columns = gather_groups(made, query_BD.device)
    return batch_scores(query_BD, own_KD, groups, columns, temperature=temperature, in_batch=in_batch)


def foreign(groups, known=None, in_batch=True):
    made = batch(groups, known)
    scores = scores_of(torch.zeros(len(groups), 1), torch.zeros(len(made.candidates), 1), made, 0.5, in_batch)
    return scores.foreign_BN.int().tolist()


def test_negatives_are_the_candidates_of_other_queries():
    assert foreign([["a", "b"], ["c", "d"]]) == [[0, 0, 1, 1], [1, 1, 0, 0]]


def test_negatives_are_not_equal_in_text_to_an_own_candidate():
    assert foreign([["a", "b"], ["c", "a"]]) == [[0, 0, 1, 0], [0, 1, 0, 0]]


def test_negatives_are_not_equal_in_id_to_an_own_candidate():
    assert foreign([["p=a", "b"], ["c", "p=d"]]) == [[0, 0, 1, 0], [0, 1, 0, 0]]


def test_negatives_are_no_known_positives_outside_the_group():
    assert foreign([["a", "b"], ["p=c", "d"], ["p=e", "f"]], known={0: "p="})[0] == [0, 0, 0, 1, 0, 1]
    assert foreign([["a", "b"], ["p=c", "d"], ["p=e", "f"]])[0] == [0, 0, 1, 1, 1, 1]


def test_negatives_are_no_examples_that_give_the_querys_answer():
    groups = [["a>yes", "b>no"], ["c>yes", "d>no"], ["e>no", "f"]]
    assert foreign(groups, known={0: ">yes", 1: ">no"})[:2] == [[0, 0, 0, 1, 1, 1], [1, 0, 0, 0, 0, 1]]


def test_negatives_may_give_the_answer_of_an_own_candidate_that_is_not_the_querys():
    assert foreign([["a>yes", "b>no"], ["c>yes", "d>no"]]) == [[0, 0, 1, 1], [1, 1, 0, 0]]


def test_negatives_are_no_padding():
    assert foreign([["a", "b"], ["c", ""]]) == [[0, 0, 1, 0], [1, 1, 0, 0]]


def test_negatives_of_a_task_without_in_batch_ones_are_its_own_candidates():
    assert foreign([["a", "b"], ["c", "d"]], in_batch=False) == [[0, 0, 0, 0], [0, 0, 0, 0]]


@quick
@given(st.lists(st.lists(st.tuples(st.sampled_from("pqrstu"), st.sampled_from("abcdef")), min_size=3, max_size=3)))
def test_negatives_of_random_batches_are_those_that_a_loop_finds(groups):
    named = [[f"{passage}={text}" for passage, text in group] for group in groups]
    for own, row in zip(groups, foreign(named) if groups else [], strict=True):
        repeats = [
            any(passage == other or text == same for other, same in own) for group in groups for passage, text in group
        ]
        assert row == [int(not repeat) for repeat in repeats]


def test_batch_scores_are_cosines_over_the_temperature_at_the_queries_own_columns():
    made = batch([["a", "b"], ["c", "d"]])
    queries, candidates = torch.eye(2), torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8], [-1.0, 0.0]])
    scores = scores_of(queries, candidates, made, 0.5)
    assert torch.allclose(scores.score_BN, torch.tensor([[2.0, 0.0, 1.2, -2.0], [0.0, 2.0, 1.6, 0.0]]))
    assert scores.own_BM.tolist() == [[0, 1], [2, 3]]


@quick
@given(st.lists(st.sampled_from(sorted(BUILTIN_TASKS)), min_size=1, max_size=5), st.text(max_size=8))
def test_batch_texts_are_read_after_the_instruction_of_their_task_and_side(tasks, text):
    made = batch([[f"{text}a", f"{text}b"] for _ in tasks], tasks=tasks)
    read = made.prompted(BUILTIN_TASKS)
    for i, name in enumerate(tasks):
        spec = BUILTIN_TASKS[name]
        assert str(read[i]) == spec.query_instruction + made.queries[i]
        for k in (2 * i, 2 * i + 1):
            assert str(read[len(tasks) + k]) == spec.passage_instruction + made.candidates[k]
    assert len(read) == 3 * len(tasks)


def test_batch_losses_are_those_of_the_texts_with_their_instructions(tiny_encoder):
    encoder = load_encoder(tiny_encoder, device="cpu")
    made = batch([["the fox", "the dog"], ["a list", "a city"]])
    vectors = encoder(encoder.tokenize(made.prompted(BUILTIN_TASKS)))
    losses = TOOL.batch_losses(vectors, made)
    assert torch.allclose(losses, contrastive(scores_of(vectors[:2], vectors[2:], made, 0.1)))
    losses.mean().backward()
    assert all(torch.isfinite(weight.grad).all() for weight in encoder.parameters() if weight.grad is not None)


def test_batch_losses_of_a_task_without_in_batch_negatives_ignore_the_other_groups(tiny_encoder):
    encoder = load_encoder(tiny_encoder, device="cpu")
    alone = BUILTIN_TASKS["tool"].model_copy(update={"in_batch_negatives": False})
    objective = Objective({"tool": alone}, temperature=0.1)
    pairs = [["the fox", "the dog"], ["a list", "a city"]]

    def losses(made):
        return objective.batch_losses(encoder(encoder.tokenize(made.prompted(objective.tasks))), made)

    together, second = losses(batch(pairs)), batch(pairs[1:])
    second.queries[0] = "query 1"
    apart = [losses(made) for made in (batch(pairs[:1]), second)]
    assert together.tolist() == pytest.approx(torch.cat(apart).tolist(), abs=1e-5)
