"""From a batch to scores: whose candidates count against whom."""

from __future__ import annotations

import pytest
import torch

from embedder.model import load_encoder
from embedder.tasks import BUILTIN_TASKS
from embedder.training.data import Batch
from embedder.training.losses import contrastive
from embedder.training.scores import Scores, batch_scores
from embedder.training.step import batch_loss, gather_keys, share_of_batch


def batch(groups: list[list[str]], rewards: list[list[float]] | None = None) -> Batch:
    """Groups of texts; "" pads."""
    texts = [[text or "pad" for text in group] for group in groups]
    keys = {text: i for i, text in enumerate(sorted({text for group in texts for text in group}))}
    return Batch(
        queries=[f"query {i}" for i in range(len(groups))],
        candidates=[text for group in texts for text in group],
        reward_BM=torch.tensor(rewards or [[1.0] + [0.0] * (len(group) - 1) for group in groups]),
        valid_BM=torch.tensor([[bool(text) for text in group] for group in groups]),
        key_BM=torch.tensor([[keys[text] for text in group] for group in texts]),
    )


def scores_of(query_BD, own_KD, made: Batch, temperature: float, in_batch: bool = True) -> Scores:
    """The scores of a batch in one process."""
    groups, columns = gather_keys(made, query_BD.device)
    return batch_scores(query_BD, own_KD, groups, columns, temperature=temperature, in_batch=in_batch)


def foreign(groups, in_batch=True):
    made = batch(groups)
    vectors = torch.eye(8)
    return (
        scores_of(vectors[: len(groups)], vectors[: len(made.candidates)], made, 0.5, in_batch)
        .foreign_BN.int()
        .tolist()
    )


def test_candidates_of_other_queries_are_negatives():
    assert foreign([["a", "b"], ["c", "d"]]) == [[0, 0, 1, 1], [1, 1, 0, 0]]


def test_a_candidate_equal_in_text_to_an_own_one_is_no_negative():
    assert foreign([["a", "b"], ["c", "a"]]) == [[0, 0, 1, 0], [0, 1, 0, 0]]


def test_padding_is_no_negative():
    assert foreign([["a", "b"], ["c", ""]]) == [[0, 0, 1, 0], [1, 1, 0, 0]]


def test_without_in_batch_negatives_only_own_candidates_are_left():
    assert foreign([["a", "b"], ["c", "d"]], in_batch=False) == [[0, 0, 0, 0], [0, 0, 0, 0]]


def test_scores_are_cosines_over_the_temperature_at_the_queries_own_columns():
    made = batch([["a", "b"], ["c", "d"]])
    queries, candidates = torch.eye(2), torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8], [-1.0, 0.0]])
    scores = scores_of(queries, candidates, made, 0.5)
    assert torch.allclose(scores.score_BN, torch.tensor([[2.0, 0.0, 1.2, -2.0], [0.0, 2.0, 1.6, 0.0]]))
    assert scores.own_BM.tolist() == [[0, 1], [2, 3]]


def test_the_loss_encodes_queries_and_candidates_with_their_own_instruction(tiny_encoder):
    encoder = load_encoder(tiny_encoder, device="cpu")
    task = BUILTIN_TASKS["tool"]
    made = batch([["the fox", "the dog"], ["a list", "a city"]])
    seen = []

    def tokenize(texts):
        seen.extend(texts)
        return encoder.tokenize(texts)

    loss = batch_loss(tokenize, encoder, made, task, 0.1)
    assert seen == [task.query_instruction + text for text in made.queries] + [
        task.key_instruction + text for text in made.candidates
    ]
    vectors = encoder(encoder.tokenize(seen))
    assert torch.allclose(loss, contrastive(scores_of(vectors[:2], vectors[2:], made, 0.1)))
    loss.backward()
    assert all(torch.isfinite(weight.grad).all() for weight in encoder.parameters() if weight.grad is not None)


def test_a_task_without_in_batch_negatives_ignores_the_other_groups(tiny_encoder):
    encoder = load_encoder(tiny_encoder, device="cpu")
    task = BUILTIN_TASKS["tool"].model_copy(update={"in_batch_negatives": False})
    pairs = [["the fox", "the dog"], ["a list", "a city"]]
    together = batch_loss(encoder.tokenize, encoder, batch(pairs), task, 0.1)
    first = batch(pairs[:1])
    second = batch(pairs[1:])
    second.queries[0] = "query 1"
    apart = [batch_loss(encoder.tokenize, encoder, one, task, 0.1) for one in (first, second)]
    assert together.item() == pytest.approx(sum(apart).item() / 2, abs=1e-5)


def test_one_process_takes_the_whole_batch():
    assert share_of_batch([5, 3, 8]) == [5, 3, 8]
