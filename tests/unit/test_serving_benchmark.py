"""The serving benchmark: what its load counts, and the figures it quotes."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.responses import JSONResponse

from benchmarks.serving import headlines
from benchmarks.serving_load import Ask, Load, Spec, holds, run
from tests.cluster.conftest import free_port


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A server that finds `a`, and refuses what asks for it."""
    api = FastAPI()

    @api.post("/v1/search")
    async def search(body: dict) -> JSONResponse:
        if body["query"] == "too much":
            return JSONResponse({"error": {}}, status_code=429)
        return JSONResponse({"results": [[{"id": "a"}]]})

    port = free_port()
    server = uvicorn.Server(uvicorn.Config(api, host="127.0.0.1", port=port, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    with httpx.Client(transport=httpx.HTTPTransport(retries=20)) as client:
        client.get(f"http://127.0.0.1:{port}/")
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


def search(query: str, *ids: str) -> Ask:
    return Ask("/v1/search", {"query": query}, ids=list(ids))


def test_refused_wrong_and_lost_answers_are_counted(url):
    asks = [search("right", "a"), search("wrong", "b"), search("too much", "a")]
    load = run(Spec(url, asks, clients=3, seconds=60, warm_s=0, requests=90))
    assert load.failed + load.ok >= 90 and load.statuses.keys() == {"200", "429"}
    assert load.wrong == pytest.approx(load.ok / 2, abs=3) and load.failed == pytest.approx(30, abs=3)
    assert len(load.refused_ms) == load.failed and load.percentile(50) > 0
    gone = run(Spec(f"http://127.0.0.1:{free_port()}", asks[:1], seconds=60, warm_s=0, requests=5))
    assert gone.statuses == {"lost": 5}


def test_requests_at_a_rate_do_not_wait_for_answers(url):
    load = run(Spec(url, [search("right", "a")], clients=50, seconds=1.0, warm_s=0.2, rate=100))
    assert 20 < load.ok <= 105 and load.failed == load.wrong == 0


def test_an_answer_holds_the_ids_in_their_order_or_the_vector():
    assert holds(search("q", "a", "b"), b'{"results": [[{"id": "a"}, {"id": "b"}]]}')
    assert not holds(search("q", "b", "a"), b'{"results": [[{"id": "a"}, {"id": "b"}]]}')
    ask = Ask("/v1/embeddings", {}, vector=[0.6, 0.8])
    assert holds(ask, b'{"data": [{"embedding": [0.6, 0.80001]}]}')
    assert not holds(ask, b'{"data": [{"embedding": [0.8, 0.6]}]}')


def test_what_is_quoted_is_the_better_way_of_ours_against_the_others():
    def system(rps: float) -> dict[str, object]:
        return {clients: {"rps": rps, "p50_ms": 2.0, "p99_ms": 5.0} for clients in ("1", "8", "32")}

    short = {"ours": system(10), "ours-haproxy": system(30), "infinity": system(15), "bare": system(10), "commit": "x"}
    quoted = headlines({"short": short, "kill": {"kill_failed": 0, "kill_wrong": 0}})
    assert quoted["best"] == "ours-haproxy" and quoted["rps_vs_infinity_short_8"] == 2.0
    assert quoted["rps_vs_bare_serve_short_32"] == 3.0 and quoted["p99_over_p50"] == 2.5
    assert quoted["kill_failed"] == 0 and "update_failed" not in quoted
    assert headlines({}) == {}
    assert Load(seconds=2.0, ok_ms=[1.0, 3.0], statuses={"200": 2}).figures()["rps"] == 1.0
