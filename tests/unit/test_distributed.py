"""Several workers train what one would: the same batches, the same loss and the same gradient."""

from __future__ import annotations

import pytest
import torch
from torch.multiprocessing import spawn

from embedder.training.distributed import gather, group_backend, rank, sum_over_workers, world_size
from embedder.training.row_files import write_training_rows
from tests.unit.batch_ranks import BATCH_SIZE, PLANS, SIZES, STEPS, TASKS, Outcome, read_outcomes, work


def test_gather_in_one_process_is_the_identity():
    value = torch.tensor([1.0, 2.0], requires_grad=True)
    assert gather(value) is value
    assert (world_size(), rank(), sum_over_workers([3.0])) == (1, 0, [3.0])


def test_group_backend_joins_hosts_by_gloo_and_gpus_by_nccl_unless_they_are_shared():
    assert [group_backend(gpus) for gpus in (0, 1, 0.5)] == ["gloo", "cpu:gloo,cuda:nccl", "cpu:gloo,cuda:gloo"]


def groups():
    """Ragged groups; texts, ids and known positives repeat within and over the workers' shares."""
    words = ["fox", "dog", "list", "city", "fox", "bridge", "set", "dog", "dict", "fox"]
    for task, rows in SIZES.items():
        for number in range(rows):
            count = 4 - number % 3
            texts = [f"the {words[(3 * number + i) % 10]} {'near ' * (number % 2)}" for i in range(count)]
            yield {
                "task": task,
                "dataset": "set",
                "query_id": f"{task} {number}",
                "query": f"where is the {words[number % 10]} of {task} {number // 2}?",
                "answers": [words[number % 10]],
                "candidate_ids": [f"{number + i}" for i in range(count)],
                "candidate_texts": texts,
                "relevance": [1] + [0] * (count - 1),
                "rewards": [float((number + i) % 3) for i in range(count)],
                "error": None,
            }


@pytest.fixture(scope="module")
def found(tiny_encoder, tmp_path_factory) -> dict[int, list[dict[str, Outcome]]]:
    """By number of workers: the outcomes of each of them."""
    folder = tmp_path_factory.mktemp("ranks")
    positives = {("set", f"qa {number}"): [f"{number + 5}"] for number in range(SIZES["qa"])}
    kept = {name: spec.model_copy(update={"skip_flat": False}) for name, spec in TASKS.items()}
    counts, _ = write_training_rows(list(groups()), kept, folder / "rows.arrow", positives)
    assert counts == SIZES
    spawn(work, args=(tiny_encoder, folder / "rows.arrow", [4, 2, 1]), nprocs=4)
    return {workers: [read_outcomes(folder, i, workers) for i in range(workers)] for workers in (1, 2, 4)}


def test_distributed_steps_include_every_loss_and_mixed_batches(found):
    tasks = [set(label.partition(": ")[2].split()) for label in found[1][0]]
    assert set.union(*(names for names in tasks if len(names) == 1)) == set(TASKS)
    assert sum(len(names) == len(TASKS) for names in tasks) == len(STEPS["mixed"])
    assert all(size % BATCH_SIZE for size in SIZES.values())
    assert len(PLANS) == 2


@pytest.mark.parametrize("workers", [2, 4])
def test_distributed_workers_share_out_the_batch_of_one(found, workers):
    for label, alone in found[1][0].items():
        shares = [one[label].queries for one in found[workers]]
        assert {len(share) for share in shares} == {BATCH_SIZE // workers}
        assert sorted(query for share in shares for query in share) == sorted(alone.queries)


@pytest.mark.parametrize("workers", [2, 4])
def test_distributed_workers_have_the_loss_and_the_gradient_of_one(found, workers):
    for label, alone in found[1][0].items():
        each = [one[label] for one in found[workers]]
        assert {one.loss for one in each} == {each[0].loss}
        assert each[0].loss == pytest.approx(alone.loss, abs=1e-5)
        mean = torch.stack([one.gradient for one in each]).mean(0)
        assert alone.gradient.abs().max() > 1e-3
        assert (mean - alone.gradient).abs().max() < 1e-5 * max(1, alone.gradient.abs().max())
        assert (each[0].gradient - alone.gradient).abs().max() > 1e-4
