"""The actors of `label` as plain objects: they label what is missing, and what the first block cost tells the rest."""

from __future__ import annotations

import json
import random

import pyarrow as pa
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from embedder.config.load import load_run
from embedder.config.run import CHUNKED
from embedder.data.records import GROUP, QUERY, QUERY_CORE, group_id, write_table
from embedder.labelling.labeller import RewardLabeller
from ray_jobs.cluster.blocks import BlockCost
from ray_jobs.cluster.tables import llm_ledger
from ray_jobs.labelling import actors
from ray_jobs.labelling.block_plan import survey
from ray_jobs.labelling.provenance import LabelPools, note_device, read_devices
from ray_jobs.labelling.rehearsal import rehearse_labelling
from ray_jobs.labelling.rounding_sample import score_exactly
from tests.unit.tiny_llms import SEQUENTIAL, save_tiny

NO_POOLS = LabelPools({}, {})
WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "lazy", "dog", "and", "runs", "Paris", "capital"]


@pytest.fixture
def config(tmp_path, tiny_llama_folder, tiny_encoder_folder, monkeypatch):
    """A run that labels with a tiny LLM, whose actors are made without Ray."""
    monkeypatch.setattr(actors.ray, "get", lambda reference: reference)
    run = {
        "paths": {"work": str(tmp_path / "work"), "cache": str(tmp_path / "cache")},
        "encoder": {"model": str(tiny_encoder_folder), "pooling": "mean"},
        "llm": {"model": str(tiny_llama_folder), "max_prefix_tokens": 400, "batch_tokens": 1024},
        "tasks": {"qa": {"shots": 0}, "chat": {"max_output_tokens": 16}},
        "label": {"num_samples": 4, "unit_groups": 4, "block_rows": 4},
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(run), encoding="utf-8")
    return load_run(path)


def text(drawn: random.Random, low: int, high: int) -> str:
    return " ".join(drawn.choices(WORDS, k=drawn.randint(low, high)))


def groups_of(task: str, count: int, candidates: int = 4) -> list[dict[str, object]]:
    """Groups of passages of very different lengths, of which some have common ones."""
    drawn = random.Random(task)
    corpus = [text(drawn, 5, 60) for _ in range(3 * count)]
    rows = []
    for number in range(count):
        chosen = drawn.sample(range(len(corpus)), candidates)
        query, answer = text(drawn, 3, 12), text(drawn, 1, 3 if task == "qa" else 30)
        ids, texts = [f"p{i}" for i in chosen], [corpus[i] for i in chosen]
        values = (task, f"of-{task}", f"{task}-{number}", query, [answer], ids, texts, [1] + [0] * (candidates - 1))
        rows.append(dict(zip(GROUP.names, values, strict=True)))
    return rows


def write(config, groups):
    for task in {group["task"] for group in groups}:
        own = [group for group in groups if group["task"] == task]
        write_table(own, GROUP, config.paths.candidates / f"of-{task}.parquet")


def write_queries(config, groups):
    """The queries of groups as `prepare` leaves them."""
    rows = [{**dict.fromkeys(QUERY.names), **{name: group[name] for name in QUERY_CORE.names}} for group in groups]
    write_table(rows, QUERY, config.paths.queries / "train" / f"{groups[0]['dataset']}.parquet")


def label(config, block_rows=4) -> list[BlockCost]:
    """The cost of each block that is ahead, labelled in order."""
    actor = actors.LabelBlocks(config, NO_POOLS, "print")
    blocks = survey(config, llm_ledger(config.paths), block_rows).blocks
    costs = [row for number in range(blocks.num_rows) for row in actor(blocks.slice(number, 1)).to_pylist()]
    return [BlockCost(**{name: value for name, value in cost.items() if name != "failure"}) for cost in costs]


def rows_of(config):
    return {row["row_id"]: row for row in llm_ledger(config.paths).read().to_pylist()}


def test_label_blocks_of_one_new_passage_read_the_groups_that_changed_and_no_other(config):
    groups = groups_of("qa", 10)
    write(config, groups)
    label(config)
    before = rows_of(config)
    changed = [3, 4, 9]
    for number in changed:
        groups[number] |= {"candidate_ids": ["new", *groups[number]["candidate_ids"][1:]]}
        groups[number] |= {"candidate_texts": ["the new passage", *groups[number]["candidate_texts"][1:]]}
    write(config, groups)
    work = survey(config, llm_ledger(config.paths), 4)
    assert (work.tasks["qa"].groups, work.tasks["qa"].ahead, work.tasks["qa"].pairs) == (10, 3, 12)
    costs = label(config)
    assert sum(cost.pairs for cost in costs) == 12 and sum(cost.rows for cost in costs) == 3
    after = rows_of(config)
    assert after.keys() - before.keys() == {group_id(groups[number]) for number in changed}
    assert {row_id: after[row_id] for row_id in before} == before
    assert llm_ledger(config.paths).count_duplicates() == 0
    assert label(config) == []


def test_label_blocks_after_a_kill_are_the_same_to_the_last_bit(config, tmp_path):
    """Some groups are missing; labelled in one go, and cut off after a block, with blocks of another size."""
    groups = groups_of("qa", 12)
    write(config, groups[:5])
    label(config)
    config_again = config.model_copy(update={"paths": config.paths.model_copy(update={"work": tmp_path / "again"})})
    write(config_again, groups[:5])
    label(config_again)
    for each in (config, config_again):
        write(each, groups)
    label(config)
    actor, blocks = (
        actors.LabelBlocks(config_again, NO_POOLS, "print"),
        survey(config_again, llm_ledger(config_again.paths), 1),
    )
    actor(blocks.blocks.slice(1, 1))
    label(config_again, block_rows=9)
    assert rows_of(config_again) == rows_of(config) and len(rows_of(config)) == 12


def test_label_blocks_retried_after_their_commit_are_not_labelled_twice(config):
    write(config, groups_of("qa", 4))
    actor = actors.LabelBlocks(config, NO_POOLS, "print")
    blocks = survey(config, llm_ledger(config.paths), 4).blocks
    actor(blocks)
    assert [row["pairs"] for row in actor(blocks).to_pylist()] == [0]
    assert isinstance(blocks, pa.Table) and llm_ledger(config.paths).count_duplicates() == 0


@pytest.mark.parametrize("tasks", [["qa"], ["chat", "qa"]])
def test_label_estimate_after_the_first_block_is_near_what_is_then_done(config, tasks):
    """The random LLM ends no output, so that those of `qa` are three times as long as sizes tell."""
    write(config, [group for task in tasks for group in groups_of(task, 12)])
    work = survey(config, llm_ledger(config.paths), 4)
    expected = sum(work.blocks["tokens"].to_pylist())
    assert expected == pytest.approx(sum(task.tokens for task in work.tasks.values()))
    costs = label(config)
    whole = sum(costs, BlockCost())
    first = sum(costs[: len(tasks)], BlockCost())
    share = first.expected / expected
    for name in ("tokens", "flops"):
        assert getattr(first, name) / share == pytest.approx(getattr(whole, name), rel=0.3), name
    assert whole.expected == pytest.approx(expected) and whole.pairs == sum(task.pairs for task in work.tasks.values())


def test_label_blocks_note_what_scored_them(config):
    write(config, groups_of("qa", 4))
    label(config)
    assert read_devices(config.paths) == ["cpu, float32, chunked tree"]


def test_label_blocks_tell_the_batches_that_memory_cut(config):
    actor = actors.LabelBlocks(config, NO_POOLS, "print")
    actor.labeller.backend.limit.lower(512)
    assert [(limit.work, limit.most) for limit in actor.limits()] == [("scoring", 256)]


def test_read_devices_folders_begun_before_the_scorer_was_noted_name_a_device_once(config):
    for kind in ("cpu, float32", "cpu, float32, chunked tree", "2 x cpu, float32", "cpu, bfloat16, flex", "cpu, int8"):
        note_device(config.paths, kind)
    note_device(config.paths, "cpu, bfloat16, flex, at most 1,024 tokens at once")
    assert read_devices(config.paths) == [
        *("2 x cpu, float32", "cpu, bfloat16, flex", "cpu, bfloat16, flex, at most 1,024 tokens at once"),
        *("cpu, float32, chunked tree", "cpu, int8"),
    ]


def test_score_exactly_tells_what_bfloat16_changed_and_nothing_of_float32(config):
    """The labels are scored once more from what their rows hold: in float32 to the same numbers."""
    write(config, groups_of("qa", 6))
    label(config)
    sample = list(rows_of(config).values())
    same = score_exactly(config, NO_POOLS, sample)
    assert (same.groups, same.rewards, same.differing) == (6, 24, 0) and same.mean_nats < 1e-5
    half = config.model_copy(update={"llm": config.llm.model_copy(update={"dtype": "bfloat16"})})
    half = half.model_copy(update={"paths": config.paths.model_copy(update={"work": config.paths.work / "half"})})
    write(half, groups_of("qa", 6))
    label(half)
    found = score_exactly(half, NO_POOLS, list(rows_of(half).values()))
    assert (found.groups, found.rewards) == (6, 24) and 1e-4 < found.mean_nats < 0.2
    assert read_devices(half.paths) == ["cpu, bfloat16, chunked tree"]


def test_score_exactly_of_an_llm_that_is_too_large_says_so(config, monkeypatch):
    write(config, groups_of("qa", 2))
    label(config)
    sample = list(rows_of(config).values())

    def fail(*_, **__):
        raise torch.OutOfMemoryError("pretended")

    monkeypatch.setattr(RewardLabeller, "rescore", fail)
    assert "needs more memory than there is" in score_exactly(config, NO_POOLS, sample)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", fail)
    assert "was not measured: model folder" in (told := score_exactly(config, NO_POOLS, sample))
    assert "does not fit into memory (pretended)" in told


def test_score_exactly_keeps_the_scorer_that_the_user_had_to_name(config, tmp_path):
    """With another one the trial of this LLM fails, which on a GPU is an error."""
    folder = save_tiny(SEQUENTIAL["cohere, scaled logits"], tmp_path)
    changes = {"model": str(folder), "scorer": CHUNKED, "max_prefix_tokens": 300}
    chunked = config.model_copy(update={"llm": config.llm.model_copy(update=changes)})
    write(config, groups_of("qa", 2))
    label(config)
    sample = list(rows_of(config).values())
    told = score_exactly(chunked, NO_POOLS, sample)
    assert told.startswith("what bfloat16 changes was not measured: llm.model") and "by 'chunked tree' on cpu" in told


def test_rehearse_labelling_of_a_sample_reports_whether_rewards_can_be_trusted_and_commits_nothing(config):
    groups = groups_of("qa", 8)
    write(config, groups)
    write_queries(config, groups)
    work = survey(config, llm_ledger(config.paths), 4)
    told = rehearse_labelling(config, config.llm, work, 6)
    assert told[0].startswith("qa: 24 pairs in ") and "at this rate about" in told[1]
    assert "a known positive above another candidate in" in told[2] and "correlation with another seed" in told[2]
    page = config.paths.reports / "sample" / "labelling.html"
    assert told[-1] == f"report on 6 groups: {page}" and "Can these rewards be trusted?" in page.read_text()
    trust = json.loads(page.with_suffix(".json").read_text())["tasks"]["qa"]["trust"]
    assert trust["groups_with_known_positives"] == 6 and -1 <= trust["stability"] <= 1
    assert not rows_of(config)


def test_rehearse_labelling_without_answers_tells_how_far_that_agrees_with_rewards_from_answers(config):
    groups = groups_of("qa", 10)
    groups[0]["answers"] = []
    write(config, groups)
    write_queries(config, groups)
    own = config.tasks["qa"].model_copy(update={"reward": "own_answers"})
    config = config.model_copy(update={"tasks": {**config.tasks, "qa": own}})
    told = rehearse_labelling(config, config.llm, survey(config, llm_ledger(config.paths), 4), 10)
    beside = [line for line in told if "from the rows' answers" in line]
    assert [line.split(" from")[0] for line in beside] == ["qa: beside likelihood", "qa: beside rank"]
    page = config.paths.reports / "sample" / "labelling.html"
    numbers = json.loads(page.with_suffix(".json").read_text())["tasks"]["qa"]
    agreement = numbers["trust"]["with_answers"]["likelihood"]
    assert 5 <= agreement["groups"] <= 9 and -1 <= agreement["spearman"] <= 1
    assert (numbers["errors"], numbers["rewarded"]) == (0, 10)
    assert "Spearman with likelihood" in page.read_text() and "same best as rank" in page.read_text()
    assert not rows_of(config)


def test_rehearse_labelling_on_a_machine_with_too_few_gpus_says_so(config, monkeypatch):
    write(config, groups_of("qa", 2))
    work = survey(config, llm_ledger(config.paths), 4)
    large = config.model_copy(update={"label": config.label.model_copy(update={"gpus_per_actor": 4})})
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    told = rehearse_labelling(large, config.llm, work)
    assert told == ["nothing is tried here: label.gpus_per_actor is 4, and GPUs here: 1"]
