"""The reranker as teacher: its loss and agreement by hand, and that it learns, resumes and labels as it should."""

from __future__ import annotations

import json
import math
import random

import pytest
import torch
from safetensors.torch import load_file
from torch.multiprocessing import spawn

from embedder.config.label import RerankerConfig
from embedder.config.tasks import BUILTIN_TASKS
from embedder.data.records import LABELLED, group_id
from embedder.errors import ConfigError, ModelError
from embedder.training.cross_encoder import export_cross_encoder, load_cross_encoder
from embedder.training.reranker_loop import (
    Agreement,
    RerankerJob,
    is_held_out,
    label_groups,
    listwise_cross_entropy,
    measure_agreement,
    ordered_alike,
    write_reranker_rows,
)
from embedder.training.training_rows import TrainingRows
from tests.unit.reranker_ranks import losses_of, work

pytestmark = pytest.mark.usefixtures("one_thread")
NAMES = ["fox", "dog", "list", "city", "bridge", "set", "dict", "market"]
LONG = "a list holds items in order and a dict maps keys to values " * 9
PAIRS = [("the fox", "a dog"), ("", "the city"), ("where?", ""), ("the fox", LONG), (LONG, "the city"), (LONG, LONG)]


def planted(number, task="qa", size=4):
    """A group in which the candidate that names the query's word has the highest reward."""
    draw = random.Random(number)
    names = draw.sample(NAMES, size)
    wanted = draw.choice(names)
    rewards = [3.0 if name == wanted else 0.0 for name in names]
    fields = {"query": wanted, "candidate_texts": [f"the {name}" for name in names], "rewards": rewards}
    fields |= {"dataset": "set", "query_id": f"{number}", "candidate_ids": names}
    return {"task": task, "row_id": f"{task}{number}", "relevance": [0] * size, "error": None, **fields}


def make_job(folder, model, rows, batch_tokens=256, **settings):
    """A job on rows of `planted`, its files written."""
    chosen = {"steps": 6, "batch_size": 4, "learning_rate": 0.003, "max_tokens": 32, "save_every": 2, **settings}
    config = RerankerConfig(model=str(model), validation_share=0.2, **chosen)
    job = RerankerJob(config, {"qa": 1.0, "icl": 0.5}, batch_tokens, folder / "rows.arrow", folder / "validation.arrow")
    write_reranker_rows(rows, BUILTIN_TASKS, job)
    return job


@pytest.fixture
def encoder(tiny_encoder_folder):
    torch.manual_seed(0)
    return load_cross_encoder(str(tiny_encoder_folder), max_tokens=32, batch_tokens=128, device="cpu")


def test_the_loss_worked_by_hand():
    scores, rewards = torch.tensor([[0.0, 1.0, 7.0]]), torch.tensor([[2.0, 0.0, 0.0]])
    valid = torch.tensor([[True, True, False]])
    target = math.exp(1) / (math.exp(1) + 1)
    lower, upper = 1 / (1 + math.e), math.e / (1 + math.e)
    expected = -target * math.log(lower) - (1 - target) * math.log(upper)
    assert listwise_cross_entropy(scores, rewards, valid, 2.0).tolist() == pytest.approx([expected])


def test_the_gradient_is_the_difference_of_the_distributions_and_spares_padding():
    scores = torch.tensor([[0.3, -1.0, 0.5], [1.0, 1.0, 1.0]], requires_grad=True)
    rewards = torch.tensor([[1.0, 0.0, 4.0], [2.0, 0.0, 9.0]])
    valid = torch.tensor([[True, True, True], [True, True, False]])
    listwise_cross_entropy(scores, rewards, valid, 0.7).sum().backward()
    first = torch.softmax(scores[0], 0) - torch.softmax(rewards[0] / 0.7, 0)
    second = torch.softmax(scores[1, :2], 0) - torch.softmax(rewards[1, :2] / 0.7, 0)
    expected = torch.stack([first, torch.cat([second, torch.zeros(1)])])
    assert torch.allclose(scores.grad, expected.detach(), atol=1e-6)


@pytest.mark.parametrize(
    ("scores", "rewards", "expected"),
    [
        ([3, 2, 1], [9, 5, 0], Agreement(3, 3)),
        ([1, 2, 3], [9, 5, 0], Agreement(0, 3)),
        ([1, 2, 3], [0, 0, 1], Agreement(2, 2)),
        ([1, 1, 0], [2, 1, 0], Agreement(2.5, 3)),
        ([1, 2], [4, 4], Agreement(0, 0)),
        ([1], [4], Agreement(0, 0)),
    ],
)
def test_agreement_worked_by_hand(scores, rewards, expected):
    assert ordered_alike(scores, rewards) == expected
    assert expected.share == (expected.right / expected.pairs if expected.pairs else None)


def test_a_score_is_the_same_alone_in_a_batch_and_in_any_order(encoder):
    together = encoder.score(PAIRS)
    assert len(set(together)) == len(PAIRS)
    assert encoder.score(PAIRS[::-1]) == pytest.approx(together[::-1], abs=1e-5)
    assert [encoder.score([pair])[0] for pair in PAIRS] == pytest.approx(together, abs=1e-5)
    assert encoder.score([]) == []


def test_the_candidate_is_cut_and_a_long_query_first_keeps_half(encoder):
    words = encoder.tokenizer(LONG, add_special_tokens=False)["input_ids"]
    rows = [row.ids for row in encoder.tokenize(PAIRS)]
    assert max(map(len, rows)) == 32
    query, candidate = words[:14], encoder.tokenizer("the city", add_special_tokens=False)["input_ids"]
    assert rows[4] == [2, *query, 3, *candidate, 3]
    assert rows[5] == [2, *query, 3, *words[:15], 3]
    fox = encoder.tokenizer("the fox", add_special_tokens=False)["input_ids"]
    assert rows[3] == [2, *fox, 3, *words[: 29 - len(fox)], 3]


def test_query_and_candidate_are_told_apart_where_model_and_tokenizer_can(encoder):
    assert all(row.segments == [] for row in encoder.tokenize(PAIRS))
    encoder.tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    other = type(encoder)(encoder.network, encoder.tokenizer, 32, 128)
    row = other.tokenize(PAIRS[:1])[0]
    parts = [len(encoder.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in PAIRS[0]]
    assert row.segments == [0] * (parts[0] + 2) + [1] * (parts[1] + 1)
    assert other.score(PAIRS[:1]) != pytest.approx(encoder.score(PAIRS[:1]), abs=1e-6)


def test_an_exported_folder_gives_the_same_scores_here_and_in_sentence_transformers(encoder, tmp_path):
    from sentence_transformers import CrossEncoder

    export_cross_encoder(encoder, tmp_path / "model")
    assert {path.suffix for path in (tmp_path / "model").iterdir()} == {".json", ".safetensors"}
    again = load_cross_encoder(str(tmp_path / "model"), max_tokens=32, batch_tokens=1024, device="cpu")
    assert again.score(PAIRS) == pytest.approx(encoder.score(PAIRS), abs=1e-5)
    other = CrossEncoder(str(tmp_path / "model"), device="cpu")
    fitting = PAIRS[:4]
    assert other.predict(fitting).tolist() == pytest.approx(encoder.score(fitting), abs=1e-5)


def test_a_model_that_cannot_serve_is_refused(tiny_encoder_folder, tmp_path):
    with pytest.raises(ConfigError, match=r"max_tokens is 129, but .* reads 128"):
        load_cross_encoder(str(tiny_encoder_folder), max_tokens=129, batch_tokens=128)
    with pytest.raises(ModelError, match="no such folder"):
        load_cross_encoder(str(tmp_path / "none"), max_tokens=32, batch_tokens=128)


def test_groups_without_signal_are_left_out_and_counted_and_order_plays_no_part(tiny_encoder_folder, tmp_path):
    rows = [planted(i) for i in range(40)] + [planted(i, "tool", 3) for i in range(20)]
    rows += [{**planted(50), "rewards": [1.0] * 4}, {**planted(51), "rewards": None, "error": "no output"}]
    files = []
    for turn in range(2):
        random.Random(turn).shuffle(rows)
        (tmp_path / str(turn)).mkdir()
        job = make_job(tmp_path / str(turn), tiny_encoder_folder, rows)
        counts = write_reranker_rows(rows, BUILTIN_TASKS, job)
        files.append((job.training.read_bytes(), job.validation.read_bytes()))
    assert files[0] == files[1]
    assert counts.left_out == {"qa: all rewards are equal": 1, "qa: no rewards: no output": 1}
    assert counts.training + counts.validation == {"qa": 40, "tool": 20}
    held_out = [row for row in rows if is_held_out(row["row_id"], 0.2)]
    assert counts.validation.total() == len(held_out)
    assert {row["row_id"] for row in held_out} > {row["row_id"] for row in rows if is_held_out(row["row_id"], 0.1)}


def test_the_agreement_is_that_of_the_scores_of_the_held_out_groups(encoder, tiny_encoder_folder, tmp_path):
    rows = [planted(i, "icl" if i % 3 else "qa", 3 + i % 2) for i in range(60)]
    job = make_job(tmp_path, tiny_encoder_folder, rows)
    expected = {}
    for row in rows:
        if is_held_out(row["row_id"], 0.2):
            one = ordered_alike(
                encoder.score([(row["query"], text) for text in row["candidate_texts"]]), row["rewards"]
            )
            right, pairs = expected.get(row["task"], (0, 0))
            expected[row["task"]] = (right + one.right, pairs + one.pairs)
    assert measure_agreement(encoder, TrainingRows(job.validation)) == expected
    assert set(expected) == {"qa", "icl"}


def test_a_planted_signal_is_learned_and_holds_on_groups_kept_out(tiny_encoder_folder, tmp_path):
    rows = [planted(i) for i in range(300)]
    job = make_job(tmp_path, tiny_encoder_folder, rows, 4096, steps=200, batch_size=32, save_every=1000)
    losses = losses_of(job, tmp_path / "checkpoints")
    exported = tmp_path / "checkpoints" / "199" / "model"
    agreement = json.loads((exported / "agreement.json").read_text(encoding="utf-8"))
    before, after = (Agreement(*agreement[when]["qa"]) for when in ("before", "after"))
    assert before.pairs == after.pairs > 100
    assert before.share < 0.7 and after.share > 0.9
    assert losses[0] == pytest.approx(math.log(4), abs=0.05) and losses[-1] < 0.8
    encoder = load_cross_encoder(str(exported), max_tokens=32, batch_tokens=256, device="cpu")
    assert measure_agreement(encoder, TrainingRows(job.validation))["qa"] == after


def test_resuming_equals_training_straight_through(tiny_encoder_folder, tmp_path):
    job = make_job(tmp_path, tiny_encoder_folder, [planted(i, "icl" if i % 2 else "qa", 3 + i % 2) for i in range(40)])
    whole = losses_of(job, tmp_path / "whole")
    assert sorted(path.name for path in (tmp_path / "whole").iterdir()) == ["1", "3", "5"]
    rest = losses_of(job, tmp_path / "rest", resume_from=tmp_path / "whole" / "1")
    assert rest == whole[2:]
    for name in ("weights.safetensors", "optimizer.safetensors"):
        first, second = (load_file(tmp_path / run / "5" / name) for run in ("whole", "rest"))
        assert all(torch.equal(first[key], second[key]) for key in first) and first.keys() == second.keys()
    texts = [(tmp_path / run / "5" / "model" / "agreement.json").read_text() for run in ("whole", "rest")]
    assert texts[0] == texts[1]


def test_two_workers_train_what_one_does(tiny_encoder_folder, tmp_path):
    rows = [planted(i, "icl" if i % 2 else "qa", 3 + i % 2) for i in range(40)]
    job = make_job(tmp_path, tiny_encoder_folder, rows, num_workers=2)
    alone = losses_of(job, tmp_path / "one")
    spawn(work, args=(job,), nprocs=2)
    first, second = (json.loads((tmp_path / f"rank{i}.json").read_text()) for i in range(2))
    assert first == second == pytest.approx(alone, abs=1e-5)
    exported = [load_cross_encoder(str(tmp_path / run / "5" / "model"), 32, 256, "cpu") for run in ("one", "two")]
    # The loss does not know a constant added to all scores, so what Adam makes of its rounding errors is not compared.
    scores = [torch.tensor(one.score(PAIRS)) for one in exported]
    assert torch.allclose(scores[0] - scores[0].mean(), scores[1] - scores[1].mean(), atol=1e-4)
    files = [tmp_path / run / "5" / "model" / "agreement.json" for run in ("one", "two")]
    agreement = [json.loads(path.read_text(encoding="utf-8")) for path in files]
    for when in ("before", "after"):
        assert agreement[0][when].keys() == agreement[1][when].keys() == {"qa", "icl"}
        for task, (right, pairs) in agreement[0][when].items():
            assert agreement[1][when][task] == [pytest.approx(right, abs=1), pairs]


def test_labelled_rows_carry_the_scores_on_the_scale_of_the_rewards(encoder):
    texts = {"answers": ["x"], "candidate_ids": ["a", "b"], "candidate_texts": ["the fox", "a dog"]}
    groups = [
        {"task": task, "dataset": "d", "query_id": task, "query": "fox", "relevance": [1, 0], **texts}
        for task in ("qa", "icl")
    ]
    groups.append({**groups[0], "candidate_ids": [], "candidate_texts": [], "relevance": []})
    rows = label_groups(encoder, groups, {"qa": 1.0, "icl": 0.1}, "print")
    scores = encoder.score([("fox", "the fox"), ("fox", "a dog")])
    assert rows[0]["rewards"] == pytest.approx(scores, abs=1e-6)
    assert rows[1]["rewards"] == pytest.approx([0.1 * score for score in scores], abs=1e-6)
    assert rows[2]["rewards"] is None and rows[2]["error"] == "no candidates"
    for row, group in zip(rows, groups, strict=True):
        assert set(row) == set(LABELLED.names)
        assert {name: row[name] for name in group} == group
        assert (row["row_id"], row["reward"], row["label_fingerprint"]) == (group_id(group), "reranker", "print")
        assert row["outputs"] is row["base_scores"] is row["scores"] is None


def test_a_score_that_is_no_number_is_an_error_of_its_group(encoder):
    with torch.no_grad():
        encoder.network.classifier.bias.fill_(math.nan)
    texts = {"answers": ["x"], "candidate_ids": ["a"], "candidate_texts": ["the fox"], "relevance": [1]}
    group = {"task": "qa", "dataset": "d", "query_id": "q", "query": "fox", **texts}
    row = label_groups(encoder, [group], {"qa": 1.0}, "print")[0]
    assert row["rewards"] is None and "not finite" in row["error"]
