"""The arithmetic of the benchmarks: what is counted as necessary work, what a load counts, and what is quoted."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import torch
from fastapi import FastAPI
from fastapi.responses import JSONResponse

from benchmarks import labelling, labelling_rounds, serving, training
from benchmarks.labelling_groups import Group
from benchmarks.labelling_limit import necessary_flops
from benchmarks.labelling_random import Shape, measure
from benchmarks.labelling_rounds import ForeignLoad, Spread, machine, ratios, time_each, write_figures
from benchmarks.serving_load import Ask, Load, Spec, holds, run
from embedder.labelling.compute_cost import ModelSize
from embedder.labelling.prefix_tree import PackedPrompt
from tests.cluster.conftest import free_port
from tests.web_server import answering


def test_necessary_flops_count_each_token_once():
    """1 2 3, then 20, and 4: five tokens are read; 3, 20 and 4 predict."""
    prompts = [PackedPrompt([1, 2, 3], [[20, 21], [20, 22]]), PackedPrompt([1, 2, 4], [[5]])]
    assert necessary_flops(ModelSize(layers=100, head=7, attention=9), prompts) == 2 * (100 * 5 + 7 * 3)


def test_group_asks_for_all_outputs_or_for_the_desired_one():
    group = Group("q", [[1], [2, 1], [3, 1]], [9, 1], [5, 6, 7], ([8, 8, 8], [9]))
    assert group.pairs == 2
    assert group.ranked(2) == [PackedPrompt(prefix, [[5, 6], [8, 8], [9]]) for prefix in ([1], [2, 1], [3, 1])]
    assert group.alone(1) == [PackedPrompt([2, 1], [[5]]), PackedPrompt([3, 1], [[5]])]


def test_ratios_are_taken_within_a_round():
    rounds = [{"A": 2.0, "C": 1.0}, {"A": 9.0, "C": 3.0}, {"C": 5.0}]
    assert ratios(rounds, "A", "C").values == [2.0, 3.0]
    assert str(Spread([2.0, 3.0, 10.0])) == "3 (2 to 10, 3 rounds)"
    assert list(time_each({"A": list, "B": dict})) == ["A", "B"]


def test_foreign_load_of_an_idle_machine_is_none(monkeypatch):
    assert {"processor", "cores", "threads", "commit", "torch"} <= machine().keys()
    monkeypatch.setattr(labelling_rounds, "busy_seconds", lambda: 0.0)
    assert ForeignLoad().cores() == 0.0


def test_random_llama_is_measured_without_a_gpu():
    tiny = Shape(hidden=32, between=64, layers=2, heads=4, vocabulary=512, prefix=30, groups=2, batch_tokens=512)
    assert all(value > 0 for value in measure(torch.device("cpu"), tiny).values())


def test_labelling_headlines_are_medians_and_the_lower_share():
    part = {"rank_vs_naive": [5.0, 7.0, 6.0], "rank_vs_reference": [1.5], "likelihood_vs_reference": [2.0]}
    found = {
        "cap8": part | {"share_of_limit": [0.7]},
        "cap32": part | {"share_of_limit": [0.8]},
        "accuracy": {"C": {"mean": 1e-6}},
    }
    assert labelling.headlines(found) == {
        "rank_vs_naive_cap32": 6.0,
        "rank_vs_naive_cap8": 6.0,
        "rank_vs_reference_cap8": 1.5,
        "likelihood_vs_reference": 2.0,
        "share_of_limit": 0.7,
        "max_error_float64": 1e-6,
    }


def test_training_headlines_are_medians_and_the_lower_share():
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


def test_serving_headlines_compare_ours_as_it_is_started_with_the_others():
    def system(rps: float, p99: float = 5.0, distance: float = 1e-7) -> dict[str, object]:
        loads = {clients: {"rps": rps, "p50_ms": 2.0, "p99_ms": p99} for clients in ("1", "8", "32", "64")}
        return loads | {"distance": distance}

    short = {"ours": system(30), "ours-proxy": system(60), "infinity": system(15), "bare": system(10), "commit": "x"}
    short["infinity-onnx"] = system(20, 10.0)
    parts = {"short": short, "mixed_lengths": {"ours": system(8), "infinity-onnx": system(5)}}
    search = {"ours short": {"1": {"p50_ms": 2.2}}}
    quoted = serving.headlines({**parts, "search": search, "kill": {"kill_failed": 0, "kill_wrong": 0}})
    assert quoted["rps_vs_infinity_short_8"] == 2.0 and quoted["rps_vs_infinity_onnx_64"] == 1.5
    assert quoted["rps_vs_infinity_onnx_mixed_32"] == 1.6 and quoted["p99_vs_infinity_onnx"] == 0.5
    assert quoted["query_vs_embedding_p50"] == 1.1
    assert quoted["rps_vs_bare_serve_short_32"] == 3.0 and quoted["p99_over_p50"] == 2.5
    assert quoted["kill_failed"] == 0 and "update_failed" not in quoted
    # A peer that gives other vectors, for it pools or cuts otherwise, does other work.
    wrong = serving.headlines({"short": {**short, "infinity-onnx": system(20, 10.0, 0.7)}})
    assert "rps_vs_infinity_short_8" in wrong and not [key for key in wrong if "infinity_onnx" in key]
    assert serving.headlines({}) == {}
    assert Load(seconds=2.0, ok_ms=[1.0, 3.0], statuses={"200": 2}).figures()["rps"] == 1.0


def test_serving_turns_are_told_by_the_median_and_the_worst():
    turns = [
        {"distance": distance, **{c: {"rps": rps, "p99_ms": 100 / rps} for c in ("1", "8", "32", "64")}}
        for rps, distance in ((10.0, 1e-7), (50.0, 3e-7), (20.0, 2e-7))
    ]
    found = serving.middle(turns)
    assert found["8"] == {"rps": 20.0, "p99_ms": 5.0, "rps_worst": 10.0, "p99_ms_worst": 10.0}
    assert (found["distance"], found["turns"]) == (3e-7, 3)


@pytest.fixture
def url() -> Iterator[str]:
    """A server that finds `a`, and refuses what asks for it."""
    api = FastAPI()

    @api.post("/v1/search")
    async def search(body: dict) -> JSONResponse:
        if body["query"] == "too much":
            return JSONResponse({"error": {}}, status_code=429)
        return JSONResponse({"results": [[{"id": "a"}]]})

    with answering(api, free_port(), path="/openapi.json") as url:
        yield url


def search(query: str, *ids: str) -> Ask:
    return Ask("/v1/search", {"query": query}, ids=list(ids))


def test_load_counts_refused_wrong_and_lost_answers(url):
    asks = [search("right", "a"), search("wrong", "b"), search("too much", "a")]
    load = run(Spec(url, asks, clients=3, seconds=60, warm_s=0, requests=90))
    assert load.failed + load.ok >= 90 and load.statuses.keys() == {"200", "429"}
    assert load.wrong == pytest.approx(load.ok / 2, abs=3) and load.failed == pytest.approx(30, abs=3)
    assert len(load.refused_ms) == load.failed and load.percentile(50) > 0
    gone = run(Spec(f"http://127.0.0.1:{free_port()}", asks[:1], seconds=60, warm_s=0, requests=5))
    assert gone.statuses == {"lost": 5}


def test_load_holds_the_ids_in_their_order_or_the_vector():
    assert holds(search("q", "a", "b"), b'{"results": [[{"id": "a"}, {"id": "b"}]]}')
    assert not holds(search("q", "b", "a"), b'{"results": [[{"id": "a"}, {"id": "b"}]]}')
    ask = Ask("/v1/embeddings", {}, vector=[0.6, 0.8])
    assert holds(ask, b'{"data": [{"embedding": [0.6, 0.80001]}]}')
    assert not holds(ask, b'{"data": [{"embedding": [0.8, 0.6]}]}')


def test_figures_that_are_not_known_become_null(tmp_path):
    """A part whose servers say nothing of their forward passes lost the figures of all parts."""
    write_figures(
        {"short": {"bare": {"forward_share": float("nan"), "rps": 2.5}}, "all": [float("nan"), 1]}, tmp_path / "f"
    )
    assert json.loads((tmp_path / "f").read_text()) == {
        "short": {"bare": {"forward_share": None, "rps": 2.5}},
        "all": [None, 1],
    }
