"""The training benchmark: ways that compute the same, its parts on a tiny model, figures as medians."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import training, training_parts
from benchmarks.training_groups import CANDIDATES, Workbench, batches_of, read_groups
from benchmarks.training_limit import PARTS as KINDS
from benchmarks.training_limit import necessary_flops
from benchmarks.training_parts import equality, memory, profile, speed, workers
from benchmarks.training_rivals import PaddedLoop


@pytest.fixture
def bench(tmp_path, tiny_encoder, one_thread, monkeypatch):
    """The tiny encoder and two made-up datasets of twenty passages; limits and steps cut to moments."""
    monkeypatch.setattr("benchmarks.labelling_limit.SECONDS", 0.001)
    monkeypatch.setattr("benchmarks.labelling_limit.SQUARES", (32,))
    monkeypatch.setattr(training_parts, "MANY_QUERIES", 4)
    for name in ("qa/nq", "tool/metatool"):
        folder = tmp_path / "data" / name
        folder.mkdir(parents=True)
        corpus = [{"id": f"p{i}", "text": "the dog is near " * (1 + i % 3) + str(i)} for i in range(20)]
        queries = [{"query_id": f"q{i}", "query": f"where is the fox {i}?", "pos_ids": [f"p{i}"]} for i in range(5)]
        for file, lines in (("corpus", corpus), ("train", queries)):
            text = "\n".join(json.dumps(line) for line in lines)
            (folder / f"{file}.jsonl").write_text(text + "\n", encoding="utf-8")
    return Workbench(tiny_encoder, tmp_path / "data", tmp_path / "runs")


def test_a_group_has_its_positive_first_and_no_candidate_twice(bench):
    groups = read_groups(bench.data, "qa", 12, seed=0)
    assert len(groups) == 12
    for group in groups:
        assert group["candidate_ids"][0] == "p" + group["query_id"].removeprefix("q")
        assert len(set(group["candidate_ids"])) == CANDIDATES == len(group["rewards"])
    assert groups == read_groups(bench.data, "qa", 12, seed=0)


def test_all_ways_have_one_loss_and_one_gradient(bench):
    found = equality(bench, rounds=1)
    for task in ("qa", "tool"):
        for way in ("ours", "peer"):
            assert found[task][way]["loss"] == pytest.approx(found[task]["loss"], rel=1e-5)
            assert found[task][way]["gradient"] < 3e-4  # the vectors of a random encoder nearly coincide


def test_the_three_ways_are_timed_in_turns(bench):
    found = speed(2, bench, rounds=2)
    assert found["rounds_taken"] == len(found["rounds"]) == len(found["vs_peer"]) == 2
    for task in ("qa", "tool"):
        assert [one["seconds"][task].keys() for one in found["rounds"]] == [{"peer", "ours", "padded"}] * 2
    assert len(found["padded"]) == 2 and all(value > 0 for value in found["vs_peer"] + found["share_of_limit"])


def test_rounds_beside_other_work_are_kept_apart(bench, monkeypatch):
    loads = iter([0.0, 0.1, 0.9, 0.0] * 2)
    monkeypatch.setattr(training_parts.ForeignLoad, "cores", lambda self: next(loads))
    found = speed(2, bench, rounds=3)
    assert [max(one["foreign_cores"]) for one in found["rounds"]] == [0.1, 0.9, 0.0]
    assert found["rounds_taken"] == len(found["vs_peer"]) == 2


def test_necessary_work_counts_each_text_once(bench):
    batch = batches_of(bench.job("qa", 2, 1))[0]
    encoder = PaddedLoop(bench.job("qa", 2, 1)).encoder
    tasks = bench.job("qa", 2, 1).tasks
    weights = 2 * (4 * 32 * 32 + 2 * 32 * 64)
    texts = set(batch.prompted(tasks))
    assert len(texts) < 2 + 2 * CANDIDATES or len(texts) == 18
    tokens = sum(len(row) for row in encoder.tokenize(sorted(texts)))
    assert necessary_flops(encoder, batch, tasks) == 6.0 * weights * tokens


def test_shares_of_time_sum_up(bench):
    for shares in profile(bench, rounds=1).values():
        assert shares.keys() == {*KINDS, "rest"}
        assert sum(shares.values()) == pytest.approx(1)
        assert shares["matrix products"] > 0


@pytest.mark.slow
def test_workers_and_memory_are_measured_in_processes_of_their_own(bench, monkeypatch):
    found = workers(bench, rounds=2)
    assert len(found["two_workers_vs_one"]) == 1 and found["two_workers_vs_one"][0] > 0
    assert memory(bench, rounds=1)["peak_bytes"] > 50e6
    assert torch.get_num_threads() == 1


def test_headlines_are_medians_and_the_lower_share():
    found = {
        "16": {"vs_peer": [2.0, 3.0, 2.5], "share_of_limit": [0.5, 0.6, 0.4]},
        "64": {"vs_peer": [1.7], "share_of_limit": [0.45]},
        "workers": {"two_workers_vs_one": [1.8]},
    }
    assert training.headlines(found) == {
        "vs_sentence_transformers_16": 2.5,
        "vs_sentence_transformers_64": 1.7,
        "share_of_limit": 0.45,
        "two_workers_vs_one": 1.8,
    }


def test_without_data_it_says_so(tmp_path, capsys):
    assert training.main(["--data", str(tmp_path)]) == 1
    assert "no data" in capsys.readouterr().out
