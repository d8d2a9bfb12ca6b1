"""What is minimised: each task by its own loss, in mixed batches too, and over prefixes of the vectors."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from embedder.config.tasks import BUILTIN_TASKS, TaskSpec
from embedder.config.train import TrainConfig
from embedder.errors import ConfigError
from embedder.training.losses import (
    contrastive,
    graded_distillation,
    kl_distillation,
    margin_mse,
    reference_distillation,
)
from embedder.training.objective import Columns, Groups, Objective, batch_scores, prefix_widths, task_losses
from tests.unit.judges import quick

QUERIES, SIZE, WIDTH = 4, 3, 8
TASKS = {
    **{name: spec.model_copy(update={"reward_temperature": 1.0}) for name, spec in BUILTIN_TASKS.items()},
    "alone": BUILTIN_TASKS["qa"].model_copy(update={"in_batch_negatives": False, "reward_temperature": 0.3}),
}


def made(seed: int):
    """Random unit vectors and groups, with gradient."""
    random = torch.Generator().manual_seed(seed)
    query = F.normalize(torch.randn(QUERIES, WIDTH, generator=random), dim=-1).requires_grad_()
    candidate = F.normalize(torch.randn(QUERIES * SIZE, WIDTH, generator=random), dim=-1).requires_grad_()
    keys = torch.randint(8, (QUERIES * SIZE, 2), generator=random) + torch.tensor([0, 10])
    valid = torch.rand(QUERIES, SIZE, generator=random) < 0.8
    valid[:, 0] = True
    groups = Groups(
        torch.arange(QUERIES * SIZE).view(QUERIES, SIZE),
        valid,
        torch.randint(3, (QUERIES, SIZE), generator=random).float(),
        torch.rand(QUERIES, SIZE, generator=random) < 0.5,
        keys.view(QUERIES, -1),
    )
    return query, candidate, groups, Columns(keys, valid.flatten())


def losses(objective: Objective, tasks: list[str], seed: int):
    query, candidate, groups, columns = made(seed)
    value = objective.losses(query, candidate, tasks, groups, columns)
    gradients = torch.autograd.grad(value.sum(), (query, candidate))
    return value, gradients


@quick
@given(st.lists(st.sampled_from(sorted(TASKS)), min_size=QUERIES, max_size=QUERIES), st.integers(0, 999))
def test_objective_gives_a_query_of_a_mixed_batch_the_loss_of_its_task_against_the_candidates_of_all(tasks, seed):
    objective = Objective(TASKS, temperature=0.2)
    value, _ = losses(objective, tasks, seed)
    for number, name in enumerate(tasks):
        alone, _ = losses(objective, [name] * QUERIES, seed)
        assert value[number].item() == pytest.approx(alone[number].item(), rel=1e-5)


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        ("graded", lambda scores: graded_distillation(scores, 0.5)),
        ("kl", lambda scores: kl_distillation(scores, 0.5)),
        ("margin_mse", lambda scores: margin_mse(scores, 0.5)),
        ("contrastive", contrastive),
        ("reference", reference_distillation),
    ],
)
def test_objective_takes_the_loss_that_a_task_names(loss, expected):
    query, candidate, groups, columns = made(3)
    scores = batch_scores(query, candidate, groups, columns, temperature=0.2, in_batch=True)
    task = TaskSpec(query_instruction="", passage_instruction="", loss=loss, reward_temperature=0.5)
    assert torch.equal(task_losses(scores, task), expected(scores))


@pytest.mark.parametrize("name", ["qa", "chat", "tool", "alone"])
@pytest.mark.parametrize("dimensions", [[3], [2, 5], [2, 5, WIDTH]])
def test_objective_of_prefixes_is_the_mean_over_them_made_unit_vectors(name, dimensions):
    found, gradients = losses(Objective(TASKS, 0.2, dimensions), [name] * QUERIES, 1)
    query, candidate, groups, columns = made(1)
    parts = []
    for width in sorted({*dimensions, WIDTH}):
        cut = [query, candidate]
        if width < WIDTH:
            cut = [vectors[:, :width] / vectors[:, :width].norm(dim=1, keepdim=True) for vectors in cut]
        parts.append(Objective(TASKS, 0.2).losses(*cut, [name] * QUERIES, groups, columns))
    expected = torch.stack(parts).mean(0)
    assert torch.allclose(found, expected, atol=1e-6)
    for one, other in zip(gradients, torch.autograd.grad(expected.sum(), (query, candidate)), strict=True):
        assert torch.allclose(one, other, atol=1e-6)
    whole, _ = losses(Objective(TASKS, 0.2), [name] * QUERIES, 1)
    assert not torch.allclose(found, whole, atol=1e-3)


def test_prefix_widths_count_the_whole_vector_once_and_come_in_any_order():
    assert prefix_widths([], 8) == [8]
    assert prefix_widths([4, 2, 4], 8) == [2, 4, 8]
    assert prefix_widths([8, 2], 8) == [2, 8]


def test_prefix_widths_longer_than_the_vector_are_refused():
    with pytest.raises(ConfigError, match=r"\[2, 9\], but the encoder's vectors have 8 dimensions; leave out"):
        losses(Objective(TASKS, 0.2, [2, 9]), ["qa"] * QUERIES, 0)


def test_objective_of_a_prefix_makes_it_tell_candidates_apart():
    torch.manual_seed(0)
    query, candidate, groups, columns = made(5)
    groups = groups._replace(
        positive_BM=torch.tensor([[True, False, False]] * QUERIES), valid_BM=groups.valid_BM | True
    )

    def prefix_loss(dimensions):
        free = [vectors.detach().clone().requires_grad_() for vectors in (query, candidate)]
        optimizer = torch.optim.Adam(free, lr=0.05)
        objective = Objective(TASKS, 0.1, dimensions)
        for _ in range(60):
            optimizer.zero_grad()
            units = [F.normalize(vectors, dim=-1) for vectors in free]
            objective.losses(*units, ["tool"] * QUERIES, groups, columns).mean().backward()
            optimizer.step()
        cut = [F.normalize(vectors.detach()[:, :2], dim=-1) for vectors in free]
        return Objective(TASKS, 0.1).losses(*cut, ["tool"] * QUERIES, groups, columns).mean().item()

    assert prefix_loss([2]) < 0.5 * prefix_loss([])


def test_objective_has_the_settings_of_the_run_file():
    config = TrainConfig(steps=1, temperature=0.05, matryoshka_dimensions=[64, 32])
    assert Objective.of(TASKS, config) == Objective(TASKS, 0.05, [64, 32])


WAITING = {"_local_scalar_dense", "nonzero", "_unique2", "unique_dim", "masked_select", "bincount"}
"""Operations whose result, or its size, a GPU's host would have to wait for."""


class Waits(TorchDispatchMode):
    """Notes the operations at which the host would wait for a GPU."""

    def __init__(self):
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        # A mask as an index is turned into the places where it is true.
        masks = name == "index" and any(value is not None and value.dtype == torch.bool for value in args[1])
        if name in WAITING or masks:
            self.names.append(name)
        return func(*args, **(kwargs or {}))


def test_objective_lets_no_host_wait_for_a_gpu():
    query, candidate, groups, columns = made(2)
    with Waits() as waits:
        value = Objective(TASKS, 0.2, [3]).losses(query, candidate, ["qa", "chat", "tool", "alone"], groups, columns)
        value.sum().backward()
    assert waits.names == []
    with Waits() as waits:
        float(value.sum()), query[query[:, 0] > 0], columns.identity_N3.unique()
    assert waits.names == ["_local_scalar_dense", "index", "_unique2"]
