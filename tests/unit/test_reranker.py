"""The reranker as teacher: its loss and agreement by hand, and that it learns, resumes and labels as it should."""

from __future__ import annotations

import json
import math
import random
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file
from torch.multiprocessing import spawn

from embedder.config.run import RunConfig
from embedder.config.tasks import BUILTIN_TASKS
from embedder.data.records import LABELLED, group_id
from embedder.errors import ConfigError, DataError, ModelError
from embedder.models.encoder import SIGHT
from embedder.models.gpu_encoder import reads_key_masks
from embedder.training.cross_encoder import CrossEncoder, export_cross_encoder, load_cross_encoder
from embedder.training.learners import CrossEncoderLearner
from embedder.training.losses import group_kl
from embedder.training.ranking_quality import pair_agreement
from embedder.training.token_batches import TokenLimits
from embedder.training.validation import HeldOut
from ray_jobs.labelling import reranker
from ray_jobs.labelling.reranker import label_groups, prepare_training, taught_tasks
from ray_jobs.training import worker
from tests.unit.bare_network import BareNetwork
from tests.unit.reranker_ranks import losses_of, work
from tests.unit.training_ranks import all_rows

NAMES = ["fox", "dog", "list", "city", "bridge", "set", "dict", "market"]
LONG = "a list holds items in order and a dict maps keys to values " * 9
PAIRS = [("the fox", "a dog"), ("", "the city"), ("where?", ""), ("the fox", LONG), (LONG, "the city"), (LONG, LONG)]


def planted(number, task="qa", size=4):
    """A group in which the candidate that names the query's word has the highest reward."""
    draw = random.Random(number)
    names = draw.sample(NAMES, size)
    wanted = draw.choice(names)
    rewards = [3.0 if name == wanted else 0.0 for name in names]
    fields = {"query": f"{wanted} {number}", "candidate_texts": [f"the {name}" for name in names], "rewards": rewards}
    fields |= {"dataset": "set", "query_id": f"{number}", "candidate_ids": names, "answers": [wanted]}
    return {"task": task, "row_id": f"{task}{number}", "relevance": [0] * size, "error": None, **fields}


def make_run(folder, model, batch_tokens=256, **settings):
    """A run file with a reranker."""
    chosen = {"steps": 6, "batch_size": 4, "learning_rate": 0.003, "max_tokens": 32, "save_every": 2, **settings}
    run = {
        "paths": {"work": str(folder)},
        "encoder": {"model": str(model), "pooling": "mean", "batch_tokens": batch_tokens},
        "tasks": {"qa": {"reward_temperature": 1.0}, "icl": {"reward_temperature": 0.5}},
        "reranker": {"model": str(model), "validation_share": 0.2, **chosen},
    }
    return RunConfig.model_validate(run)


def make_job(folder, model, rows, batch_tokens=256, **settings):
    """A job on rows of `planted`, its files written; and how many went into which of them."""
    return prepare_training(make_run(folder, model, batch_tokens, **settings), rows, folder / "run")


@pytest.fixture
def encoder(tiny_encoder_folder):
    torch.manual_seed(0)
    return load_cross_encoder(str(tiny_encoder_folder), max_tokens=32, batch_tokens=128, device="cpu")


def test_group_kl_worked_by_hand():
    scores, targets = torch.tensor([[0.0, 1.0, 7.0]]), torch.tensor([[1.0, 0.0, 0.0]])
    valid = torch.tensor([[True, True, False]])
    target = math.exp(1) / (math.exp(1) + 1)
    lower, upper = 1 / (1 + math.e), math.e / (1 + math.e)
    expected = target * math.log(target / lower) + (1 - target) * math.log((1 - target) / upper)
    assert group_kl(scores, targets, valid).tolist() == pytest.approx([expected])


def test_group_kl_has_the_difference_of_the_distributions_as_gradient_and_spares_padding():
    scores = torch.tensor([[0.3, -1.0, 0.5], [1.0, 1.0, 1.0]], requires_grad=True)
    targets = torch.tensor([[1.0, 0.0, 4.0], [2.0, 0.0, 9.0]]) / 0.7
    valid = torch.tensor([[True, True, True], [True, True, False]])
    group_kl(scores, targets, valid).sum().backward()
    first = torch.softmax(scores[0], 0) - torch.softmax(targets[0], 0)
    second = torch.softmax(scores[1, :2], 0) - torch.softmax(targets[1, :2], 0)
    expected = torch.stack([first, torch.cat([second, torch.zeros(1)])])
    assert torch.allclose(scores.grad, expected.detach(), atol=1e-6)


@pytest.mark.parametrize(
    ("scores", "rewards", "expected"),
    [
        ([3, 2, 1], [9, 5, 0], 1),
        ([1, 2, 3], [9, 5, 0], 0),
        ([1, 2, 3], [0, 0, 1], 1),
        ([1, 1, 0], [2, 1, 0], 2.5 / 3),
        ([1, 2], [4, 4], None),
        ([1], [4], None),
    ],
)
def test_pair_agreement_worked_by_hand(scores, rewards, expected):
    assert pair_agreement(scores, rewards) == expected


def test_cross_encoder_scores_alike_alone_in_a_batch_and_in_any_order(encoder):
    together = encoder.score(PAIRS)
    assert len(set(together)) == len(PAIRS)
    assert encoder.score(PAIRS[::-1]) == pytest.approx(together[::-1], abs=1e-5)
    assert [encoder.score([pair])[0] for pair in PAIRS] == pytest.approx(together, abs=1e-5)
    assert encoder.score([]) == []


def test_cross_encoder_cuts_the_candidate_and_a_long_query_first_keeps_half(encoder):
    words = encoder.tokenizer(LONG, add_special_tokens=False)["input_ids"]
    rows = [row[1:] for row in encoder.tokenize(PAIRS)]
    assert max(map(len, rows)) == 32
    query, candidate = words[:14], encoder.tokenizer("the city", add_special_tokens=False)["input_ids"]
    assert rows[4] == [2, *query, 3, *candidate, 3]
    assert rows[5] == [2, *query, 3, *words[:15], 3]
    fox = encoder.tokenizer("the fox", add_special_tokens=False)["input_ids"]
    assert rows[3] == [2, *fox, 3, *words[: 29 - len(fox)], 3]


def test_cross_encoder_tells_query_and_candidate_apart_where_model_and_tokenizer_can(encoder):
    assert all(row[0] == 0 for row in encoder.tokenize(PAIRS))
    encoder.tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    other = type(encoder)(encoder.network, encoder.tokenizer, 32, 128)
    row = other.tokenize(PAIRS[:1])[0]
    parts = [len(encoder.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in PAIRS[0]]
    assert (row[0], len(row)) == (parts[0] + 2, 1 + sum(parts) + 3)
    told = encoder.tokenizer(*PAIRS[0], return_token_type_ids=True, return_tensors="pt")
    assert told["token_type_ids"][0].tolist() == [0] * row[0] + [1] * (len(row) - 1 - row[0])
    assert other.score(PAIRS[:1]) == pytest.approx(encoder.network(**told).logits[0].tolist(), abs=1e-5)
    assert other.score(PAIRS[:1]) != pytest.approx(encoder.score(PAIRS[:1]), abs=1e-6)


class ShortOfMemory(CrossEncoder):
    """A cross-encoder with room for so many padded tokens."""

    def embed(self, batch):
        if batch.ids_BL.numel() > self.room:
            self.refused.append(batch.ids_BL.numel())
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return super().embed(batch)


@pytest.mark.parametrize("segments", [False, True])
def test_cross_encoder_halves_what_does_not_fit_and_remembers_it(encoder, segments):
    if segments:
        encoder.tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    whole, short = (kind(encoder.network, encoder.tokenizer, 32, 256) for kind in (CrossEncoder, ShortOfMemory))
    short.room, short.refused = 40, []
    found, failed = short.score(PAIRS), len(short.refused)
    assert found == pytest.approx(whole.score(PAIRS), abs=1e-5) and failed
    assert short.score(PAIRS) == pytest.approx(found, abs=1e-5) and len(short.refused) == failed
    assert short.memory.most is not None and whole.memory.most is None
    short.room = 8
    with pytest.raises(torch.OutOfMemoryError):
        short.score(PAIRS)


class OnGpu(CrossEncoder):
    """A cross-encoder that is said to be on a GPU."""

    device = torch.device("cuda")


def test_cross_encoder_plans_its_passes_by_the_tokens_that_they_have(encoder):
    rows = [[0, *range(count)] for count in (3, 8, 9, 31)]
    assert encoder.row_lengths(rows).tolist() == [4, 9, 10, 32]
    assert encoder.padded(rows, [0, 1, 2, 3]).ids_BL.shape == (4, 31)
    on_gpu = OnGpu(encoder.network, encoder.tokenizer, 30, 128)
    assert on_gpu.row_lengths(rows).tolist() == [9, 9, 17, 32]


def test_cross_encoder_gives_the_same_scores_with_a_mask_by_key(encoder):
    expected, rows = encoder.score(PAIRS), encoder.tokenize([SIGHT])
    assert reads_key_masks(encoder, rows) and not encoder.masks_keys
    encoder.masks_keys = True
    assert encoder.score(PAIRS) == pytest.approx(expected, abs=1e-5)


def test_cross_encoder_exported_gives_the_same_scores_here_and_in_sentence_transformers(encoder, tmp_path):
    from sentence_transformers import CrossEncoder

    export_cross_encoder(encoder, tmp_path / "model")
    assert {path.suffix for path in (tmp_path / "model").iterdir()} == {".json", ".safetensors"}
    again = load_cross_encoder(str(tmp_path / "model"), max_tokens=32, batch_tokens=1024, device="cpu")
    assert again.score(PAIRS) == pytest.approx(encoder.score(PAIRS), abs=1e-5)
    other = CrossEncoder(str(tmp_path / "model"), device="cpu")
    fitting = PAIRS[:4]
    assert other.predict(fitting).tolist() == pytest.approx(encoder.score(fitting), abs=1e-5)


def test_cross_encoder_of_a_model_that_cannot_serve_is_refused(tiny_encoder_folder, tmp_path):
    with pytest.raises(ConfigError, match=r"max_tokens is 129, but .* reads 128"):
        load_cross_encoder(str(tiny_encoder_folder), max_tokens=129, batch_tokens=128, device="cpu")
    with pytest.raises(ModelError, match="no such folder"):
        load_cross_encoder(str(tmp_path / "none"), max_tokens=32, batch_tokens=128, device="cpu")


def test_reranker_rows_leave_out_groups_without_signal_and_do_not_depend_on_their_order(tiny_encoder_folder, tmp_path):
    rows = [planted(i) for i in range(40)] + [planted(i, "tool", 3) for i in range(20)]
    rows += [{**planted(50), "rewards": [1.0] * 4}, {**planted(51), "rewards": None, "error": "no output"}]
    files = []
    for turn in range(2):
        random.Random(turn).shuffle(rows)
        (tmp_path / str(turn)).mkdir()
        job, counts = make_job(tmp_path / str(turn), tiny_encoder_folder, rows)
        files.append([path.read_bytes() for part in (job.rows, job.held_out) for path in sorted(part.iterdir())])
    assert files[0] == files[1]
    assert counts["left_out"] == {"qa: all rewards are equal": 1, "qa: no rewards: no output": 1}
    assert counts["groups"] + counts["held_out"] == {"qa": 40, "tool": 20}
    assert counts["held_out"]["qa"] > 0 < counts["held_out"]["tool"]
    held_out, trained = ({(row["task"], row["query"]) for row in all_rows(path)} for path in (job.held_out, job.rows))
    assert not held_out & trained


def test_reranker_rows_without_any_signal_or_with_nothing_to_hold_out(tiny_encoder_folder, tmp_path):
    with pytest.raises(DataError, match="none of 1 labelled groups can be trained on"):
        make_job(tmp_path, tiny_encoder_folder, [{**planted(50), "rewards": [1.0] * 4}])
    job, counts = make_job(tmp_path, tiny_encoder_folder, [planted(1)])
    assert not counts["held_out"] and job.config.validation is None


def test_reranker_agreement_is_that_of_the_scores_of_the_held_out_groups(encoder, tiny_encoder_folder, tmp_path):
    rows = [planted(i, "icl" if i % 3 else "qa", 3 + i % 2) for i in range(60)]
    job, counts = make_job(tmp_path, tiny_encoder_folder, rows)
    shares = {"qa": [], "icl": []}
    for row in all_rows(job.held_out):
        scores = encoder.score([(row["query"], text) for text in row["candidates"]])
        shares[row["task"]].append(pair_agreement(scores, row["rewards"]))
    learner = CrossEncoderLearner(encoder, BUILTIN_TASKS)
    measured = HeldOut(job.held_out, learner).measure(BareNetwork(encoder), TokenLimits(256, None))
    assert measured == {task: pytest.approx(sum(each) / counts["held_out"][task]) for task, each in shares.items()}


def history_of(job):
    return json.loads(job.outcome.read_text(encoding="utf-8"))["validation"]["history"]


def test_reranker_learns_a_planted_signal_that_holds_on_groups_kept_out(tiny_encoder_folder, tmp_path):
    rows = [planted(i) for i in range(300)]
    job, _ = make_job(tmp_path, tiny_encoder_folder, rows, 4096, steps=200, batch_size=32, save_every=1000)
    losses = losses_of(job)
    before, after = (measured["tasks"]["qa"] for measured in history_of(job))
    assert before < 0.7 and after > 0.9
    weights = torch.softmax(torch.tensor([3.0, 0, 0, 0]), 0)
    assert losses[0] == pytest.approx(math.log(4) + (weights * weights.log()).sum().item(), abs=0.05)
    assert losses[-1] < 0.1 * losses[0]
    encoder = load_cross_encoder(str(job.exported), max_tokens=32, batch_tokens=256, device="cpu")
    learner = CrossEncoderLearner(encoder, BUILTIN_TASKS)
    measured = HeldOut(job.held_out, learner).measure(BareNetwork(encoder), TokenLimits(256, None))
    assert measured == {"qa": pytest.approx(after)}


def two_tasks():
    return [planted(i, "icl" if i % 2 else "qa", 3 + i % 2) for i in range(40)]


def test_reranker_resumed_equals_training_straight_through(tiny_encoder_folder, tmp_path):
    job, _ = make_job(tmp_path, tiny_encoder_folder, two_tasks())
    other = replace(job, folder=tmp_path / "stopped")
    shutil.copytree(job.folder, other.folder)
    whole = losses_of(job)
    assert losses_of(other, stop=4) == whole[:5] and not other.exported.exists()
    assert losses_of(other) == whole
    for name in ("weights.safetensors", "optimizer.safetensors"):
        first, second = (load_file(one.checkpoints / "step-00000006" / name) for one in (job, other))
        assert all(torch.equal(first[key], second[key]) for key in first) and first.keys() == second.keys()
    assert history_of(job) == history_of(other)


def test_reranker_of_two_workers_is_that_of_one(tiny_encoder_folder, tmp_path):
    job, _ = make_job(tmp_path, tiny_encoder_folder, two_tasks(), num_workers=2)
    other = replace(job, folder=tmp_path / "two")
    shutil.copytree(job.folder, other.folder)
    alone = losses_of(job)
    spawn(work, args=(other, tmp_path / "meeting"), nprocs=2)
    assert losses_of(other) == pytest.approx(alone, abs=1e-5)
    exported = [load_cross_encoder(str(one.exported), 32, 256, "cpu") for one in (job, other)]
    # The loss does not know a constant added to all scores, so what Adam makes of its rounding errors is not compared.
    scores = [torch.tensor(encoder.score(PAIRS)) for encoder in exported]
    assert torch.allclose(scores[0] - scores[0].mean(), scores[1] - scores[1].mean(), atol=1e-4)
    for one, two in zip(history_of(job), history_of(other), strict=True):
        assert one["tasks"].keys() == {"qa", "icl"}
        assert one["tasks"] == pytest.approx(two["tasks"], abs=0.1)


def test_train_reranker_installs_the_model_once_and_tells_its_agreement(monkeypatch, tiny_encoder_folder, tmp_path):
    monkeypatch.setattr(worker.ray.train, "get_context", lambda: SimpleNamespace(get_world_rank=lambda: 0))
    monkeypatch.setattr(reranker, "run_workers", lambda job, label: worker.train_worker({"job": job}))
    config = make_run(tmp_path, tiny_encoder_folder)
    rows = [{**planted(i), "reward": "rank", "label_fingerprint": "llm"} for i in range(40)]
    rows.append({**planted(50), "rewards": None, "reward": "none", "label_fingerprint": "llm"})
    model = reranker.train_reranker(config, pa.Table.from_pylist(rows))
    line = reranker.reranker_lines(model)[0]
    assert line.startswith("reranker, qa: trained on 32 groups; in 8 held-out groups it orders ") and "% -> " in line
    written = (model / "model.safetensors").stat().st_mtime_ns
    assert reranker.train_reranker(config, pa.Table.from_pylist(rows[::-1])) == model
    assert (model / "model.safetensors").stat().st_mtime_ns == written


def test_taught_tasks_have_the_temperatures_of_the_training_where_the_run_file_gives_none(tmp_path):
    (tmp_path / "lineage.json").write_text(json.dumps({"reward_temperatures": {"qa": 0.25, "icl": 3.0, "tool": None}}))
    given = BUILTIN_TASKS["icl"].model_copy(update={"reward_temperature": 0.5})
    tasks = {"qa": BUILTIN_TASKS["qa"], "icl": given, "tool": BUILTIN_TASKS["tool"], "chat": BUILTIN_TASKS["chat"]}
    found = {name: spec.reward_temperature for name, spec in taught_tasks(tasks, tmp_path).items()}
    assert found == {"qa": 0.25, "icl": 0.5, "tool": None, "chat": None}


def test_label_groups_gives_the_scores_on_the_scale_of_the_rewards(encoder):
    texts = {"answers": ["x"], "candidate_ids": ["a", "b"], "candidate_texts": ["the fox", "a dog"]}
    groups = [
        {"task": task, "dataset": "d", "query_id": task, "query": "fox", "relevance": [1, 0], **texts}
        for task in ("qa", "icl")
    ]
    groups.append({**groups[0], "candidate_ids": [], "candidate_texts": [], "relevance": []})
    softer = BUILTIN_TASKS["icl"].model_copy(update={"reward_temperature": 0.1})
    rows = label_groups(encoder, groups, {**BUILTIN_TASKS, "icl": softer}, "print")
    scores = encoder.score([("fox", "the fox"), ("fox", "a dog")])
    assert rows[0]["rewards"] == pytest.approx(scores, abs=1e-6)
    assert rows[1]["rewards"] == pytest.approx([0.1 * score for score in scores], abs=1e-6)
    assert rows[2]["rewards"] is None and rows[2]["error"] == "no candidates"
    for row, group in zip(rows, groups, strict=True):
        assert set(row) == set(LABELLED.names)
        assert {name: row[name] for name in group} == group
        assert (row["row_id"], row["reward"], row["label_fingerprint"]) == (group_id(group), "reranker", "print")
        assert row["outputs"] is row["base_scores"] is row["scores"] is None


def test_label_groups_makes_a_score_that_is_no_number_an_error_of_its_group(encoder):
    with torch.no_grad():
        encoder.network.classifier.bias.fill_(math.nan)
    texts = {"answers": ["x"], "candidate_ids": ["a"], "candidate_texts": ["the fox"], "relevance": [1]}
    group = {"task": "qa", "dataset": "d", "query_id": "q", "query": "fox", **texts}
    row = label_groups(encoder, [group], BUILTIN_TASKS, "print")[0]
    assert row["rewards"] is None and "not finite" in row["error"]
