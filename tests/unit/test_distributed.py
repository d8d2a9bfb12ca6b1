"""Two workers train what one would: the same loss and the same gradient."""

from __future__ import annotations

import torch
from torch.multiprocessing import spawn

from embedder.tasks import BUILTIN_TASKS
from embedder.training.data import write_training_rows
from embedder.training.distributed import gather, mean_over_workers, rank, world_size
from tests.unit.two_ranks import ROWS, TASKS, losses_and_gradients, work


def test_one_process_gathers_nothing():
    value = torch.tensor([1.0, 2.0], requires_grad=True)
    assert gather(value) is value
    assert (world_size(), rank(), mean_over_workers(torch.tensor(3.0))) == (1, 0, 3.0)


def groups():
    """Ragged groups; candidate texts repeat within and over the two workers' shares."""
    words = ["fox", "dog", "list", "city", "fox", "bridge", "set", "dog", "dict", "fox"]
    for task in TASKS:
        for number in range(ROWS):
            count = 4 - number % 2
            texts = [f"the {words[(3 * number + i) % 10]}" for i in range(count)]
            rewards = [float((number + i) % 3) for i in range(count)]
            fields = {"relevance": [1] + [0] * (count - 1), "rewards": rewards, "error": None}
            yield {"task": task, "query": f"where is the {words[number]}?", "candidate_texts": texts, **fields}


def test_two_workers_give_the_loss_and_gradient_of_one(tiny_encoder, tmp_path):
    data = tmp_path / "rows.arrow"
    write_training_rows(groups(), BUILTIN_TASKS, data)
    alone = losses_and_gradients(tiny_encoder, data)
    spawn(work, args=(tiny_encoder, data), nprocs=2)
    first, second = (torch.load(tmp_path / f"rank{i}.pt") for i in range(2))
    for task in TASKS:
        loss, gradient = alone[task]
        mean = (first[task][1] + second[task][1]) / 2
        assert abs(first[task][0] - loss) < 1e-6
        assert first[task][0] == second[task][0]
        assert gradient.abs().max() > 1e-3
        assert (mean - gradient).abs().max() < 1e-6
        assert (first[task][1] - gradient).abs().max() > 1e-4
