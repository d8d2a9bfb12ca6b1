"""Self-paced training of two tasks, one of which cannot be learned: whose rate is larger in the end."""

from __future__ import annotations

import random

import pytest
import torch

from embedder.config.tasks import BUILTIN_TASKS
from embedder.config.train import SelfPacedConfig, TrainConfig
from embedder.models.encoder import load_encoder
from embedder.training.batch_plan import BatchPlan
from embedder.training.objective import Objective
from embedder.training.row_files import write_training_rows
from embedder.training.schedule import SelfPaced
from embedder.training.training_rows import TrainingRows

WORDS = ["fox", "dog", "list", "city", "bridge", "set", "dict", "market", "forest", "order"]
STEPS = 60
TASKS = dict.fromkeys(("easy", "hard"), BUILTIN_TASKS["tool"])


def groups(seed: int):
    """In `easy` the positive is the same text each time; in `hard` it is any candidate, which cannot be foretold."""
    draw = random.Random(seed)
    for task in TASKS:
        for number in range(24):
            names = draw.sample(WORDS, 3)
            if task == "easy":
                names = ["fox", *(name for name in names if name != "fox")][:3]
            yield {
                "task": task,
                "dataset": task,
                "query_id": str(number),
                "query": f"{task} {number}",
                "candidate_ids": [f"{number} {name}" for name in names],
                "candidate_texts": names,
                "relevance": [1, 0, 0],
                "rewards": None,
                "error": None,
            }


def trained(encoder_config, folder, *, seed: int, batches: str, direction: str) -> dict[str, list[float]]:
    """By task: the factor on its learning rate at each step that trained it."""
    torch.manual_seed(seed)
    write_training_rows(list(groups(seed)), TASKS, folder / "rows.arrow", {})
    encoder, rows = load_encoder(encoder_config, device="cpu"), TrainingRows(folder / "rows.arrow")
    optimizer = torch.optim.AdamW(encoder.parameters())
    paced = SelfPaced(SelfPacedConfig(direction=direction, checkpoint_every=1000, smoothing=0.7, bounds=(0.1, 10)))
    plan = BatchPlan(rows.sizes, TrainConfig(batches=batches, batch_size=8, steps=STEPS, seed=seed))
    alone = {name: spec.model_copy(update={"in_batch_negatives": False}) for name, spec in TASKS.items()}
    rates = {task: [] for task in TASKS}
    for step in range(STEPS):
        parts = plan.batch(step)
        batch = rows.batch(parts)
        pace = paced.pace({part.task: len(part.rows) for part in parts})
        loss_B = Objective(alone, 0.1).batch_losses(encoder(encoder.tokenize(batch.prompted(alone))), batch)
        optimizer.zero_grad()
        (loss_B * torch.tensor([pace.weights[task] for task in batch.tasks])).mean().backward()
        optimizer.param_groups[0]["lr"] = 2e-3 * pace.rate
        optimizer.step()
        for part in parts:
            rates[part.task].append(pace.rate * pace.weights[part.task])
            own = torch.tensor([task == part.task for task in batch.tasks])
            paced.update(part.task, loss_B[own].mean().item(), step)
    return rates


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("batches", ["one_task", "mixed"])
def test_self_paced_gives_the_hard_task_the_larger_rate(tiny_encoder, tmp_path, seed, batches):
    rates = trained(tiny_encoder, tmp_path, seed=seed, batches=batches, direction="lossy_faster")
    late = {task: sum(factors[-8:]) / 8 for task, factors in rates.items()}
    assert rates["easy"][0] == rates["hard"][0] == 1.0
    assert late["easy"] < 0.6 * late["hard"]


def test_self_paced_the_other_way_round_gives_it_to_the_easy_task(tiny_encoder, tmp_path):
    rates = trained(tiny_encoder, tmp_path, seed=0, batches="one_task", direction="lossy_slower")
    assert sum(rates["easy"][-8:]) > sum(rates["hard"][-8:])
