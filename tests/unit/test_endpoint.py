"""Vectors from an OpenAI-compatible server: what is sent, what is tried again, what is refused, and where no key is."""

from __future__ import annotations

import json
import time
from contextlib import closing
from types import SimpleNamespace

import httpx
import numpy as np
import pytest

from embedder.config.evaluate import EndpointRetriever
from embedder.errors import ConfigError, ModelError
from embedder.evaluation.endpoint import EmbeddingEndpoint
from embedder.remote import pace
from embedder.remote import server as server_module

KEY = "sk-secret-0123456789"


def retriever(**fields):
    known = {"name": "remote", "url": "http://server/v1", "model": "m", "attempts": 4}
    return EndpointRetriever.model_validate({**known, **fields})


def vectors(count, width=3):
    rows = [{"index": i, "embedding": [float(i + 1)] * width} for i in range(count)]
    return httpx.Response(200, json={"object": "list", "data": rows})


class Server:
    """Answers requests from a list, keeps them."""

    def __init__(self, *answers):
        self.answers, self.requests = list(answers), []

    def __call__(self, request):
        self.requests.append(request)
        answer = self.answers.pop(0) if self.answers else vectors(len(json.loads(request.content)["input"]))
        if isinstance(answer, Exception):
            raise answer
        return answer

    def bodies(self):
        return [json.loads(request.content) for request in self.requests]


@pytest.fixture
def slept(monkeypatch):
    pauses = []
    clock = SimpleNamespace(sleep=pauses.append, monotonic=lambda: time.monotonic() + sum(pauses))
    # Theirs alone: threads that earlier tests have left behind sleep too.
    for module in (pace, server_module):
        monkeypatch.setattr(module, "time", clock)
    return pauses


def ask(server, texts=("a", "b"), side="query", **fields):
    with closing(EmbeddingEndpoint(retriever(**fields), httpx.MockTransport(server))) as endpoint:
        return endpoint.encode(texts, "qa", side)


def test_endpoint_texts_become_unit_vectors_in_their_order():
    shuffled = {"data": [{"index": 1, "embedding": [0, 2]}, {"index": 0, "embedding": [3, 4]}]}
    found = ask(Server(httpx.Response(200, json=shuffled)))
    assert found.dtype == np.float32
    assert found == pytest.approx(np.array([[0.6, 0.8], [0.0, 1.0]]))


def test_endpoint_a_request_is_openais(monkeypatch):
    monkeypatch.setenv("REMOTE_KEY", KEY)
    server = Server()
    ask(server, key_variable="REMOTE_KEY", dimensions=2, extra_query={"task": "{task}", "input_type": "query"})
    ask(server, side="passage", key_variable="REMOTE_KEY", extra_query={"input_type": "query"})
    assert [str(request.url) for request in server.requests] == ["http://server/v1/embeddings"] * 2
    assert {request.headers["authorization"] for request in server.requests} == {f"Bearer {KEY}"}
    plain = {"model": "m", "input": ["a", "b"], "encoding_format": "float"}
    assert server.bodies() == [{**plain, "dimensions": 2, "task": "qa", "input_type": "query"}, plain]


def test_endpoint_without_a_key_none_is_sent():
    server = Server()
    ask(server)
    assert "authorization" not in server.requests[0].headers


@pytest.mark.parametrize("failure", [429, 500, 503, httpx.ConnectError("refused"), httpx.ReadTimeout("slow")])
def test_endpoint_what_passes_is_tried_again_with_growing_pauses(slept, failure):
    answers = [failure if isinstance(failure, Exception) else httpx.Response(failure, text="busy") for _ in range(3)]
    server = Server(*answers)
    assert ask(server).shape == (2, 3)
    assert len(server.requests) == 4
    assert [0.5 * 2**i <= pause <= 2**i for i, pause in enumerate(slept)] == [True] * 3


def test_endpoint_a_server_that_asks_for_time_gets_it(slept):
    ask(Server(httpx.Response(429, headers={"retry-after": "20"}), httpx.Response(429, headers={"retry-after": "Mon"})))
    assert 19.9 < slept[0] <= 22 and 0 < slept[-1] <= 22 and len(slept) <= 3


def test_endpoint_attempts_are_counted(slept):
    server = Server(*[httpx.Response(503, text="busy") for _ in range(9)])
    with pytest.raises(ModelError, match=r"4 requests failed, the last one with status 503: busy"):
        ask(server)
    assert (len(server.requests), len(slept)) == (4, 3)


@pytest.mark.parametrize("status", [400, 401, 404, 422])
def test_endpoint_a_refusal_is_not_tried_again(slept, status):
    server = Server(httpx.Response(status, text="no such model"))
    with pytest.raises(ModelError, match=f"refuses: status {status}: no such model"):
        ask(server)
    assert (len(server.requests), slept) == (1, [])


@pytest.mark.parametrize("status", [401, 503])
def test_endpoint_no_message_holds_the_key(slept, monkeypatch, caplog, status):
    monkeypatch.setenv("REMOTE_KEY", KEY)
    caplog.set_level("DEBUG")
    server = Server(*[httpx.Response(status, text=f"bad key {KEY}") for _ in range(4)])
    with pytest.raises(ModelError) as caught:
        ask(server, key_variable="REMOTE_KEY")
    assert "bad key ***" in str(caught.value)
    assert KEY not in str(caught.value) + caplog.text + repr(retriever(key_variable="REMOTE_KEY"))


def test_endpoint_a_variable_without_a_key_is_named(monkeypatch):
    monkeypatch.setenv("REMOTE_KEY", "  ")
    with pytest.raises(ConfigError, match="REMOTE_KEY holds no key"):
        ask(Server(), key_variable="REMOTE_KEY")


STRANGE = {
    "no JSON": httpx.Response(200, text="<html>"),
    "another form": httpx.Response(200, json={"vectors": []}),
    "a list": httpx.Response(200, json=[1]),
    "too few": httpx.Response(200, json={"data": [{"index": 0, "embedding": [1.0]}]}),
    "two lengths": httpx.Response(
        200, json={"data": [{"index": 0, "embedding": [1]}, {"index": 1, "embedding": [1, 2]}]}
    ),
    "no index": httpx.Response(200, json={"data": [{"embedding": [1]}, {"embedding": [2]}]}),
    "text": httpx.Response(200, json={"data": [{"index": 0, "embedding": "AAAA"}, {"index": 1, "embedding": "AAAA"}]}),
    "zero": httpx.Response(200, json={"data": [{"index": 0, "embedding": [0.0]}, {"index": 1, "embedding": [1.0]}]}),
    "empty": httpx.Response(200, json={"data": [{"index": 0, "embedding": []}, {"index": 1, "embedding": []}]}),
}


@pytest.mark.parametrize("answer", STRANGE.values(), ids=STRANGE.keys())
def test_endpoint_an_answer_of_another_form_is_refused(answer):
    with pytest.raises(ModelError, match="http://server/v1"):
        ask(Server(answer))


def test_endpoint_the_address_must_hold_no_secret():
    for url in ("http://user:key@server/v1", "ftp://server", "http://server/v1?key=1"):
        with pytest.raises(ValueError, match="url"):
            retriever(url=url)
    assert retriever(url="http://server/v1/").url == "http://server/v1"


@pytest.mark.parametrize("key", ["sk-ä", "sk\x00a", "sk a", "k" * 5000])
@pytest.mark.parametrize("place", ["variable", "file"])
def test_endpoint_a_key_that_no_header_can_hold_is_refused_and_not_shown(monkeypatch, tmp_path, key, place):
    if place == "file":
        (tmp_path / "key").write_text(key, encoding="utf-8")
        named = {"key_file": tmp_path / "key"}
    elif "\x00" in key:
        pytest.skip("no variable can hold it")
    else:
        monkeypatch.setenv("REMOTE_KEY", key)
        named = {"key_variable": "REMOTE_KEY"}
    with pytest.raises(ConfigError, match=r"holds no key; it must hold the key and nothing else, in ASCII") as caught:
        ask(Server(), **named)
    assert key not in str(caught.value)


def test_endpoint_a_key_file_may_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / "key").write_text(KEY, encoding="utf-8-sig")
    server = Server()
    ask(server, key_file=tmp_path / "key")
    assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize(
    ("variable", "value"), [("HTTP_PROXY", "ftp://proxy"), ("SSL_CERT_FILE", "/nowhere/certificates.pem")]
)
def test_endpoint_a_proxy_or_certificate_that_cannot_be_used_is_one_line(monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError, match=r"the environment names cannot be used .*; correct HTTP_PROXY"):
        EmbeddingEndpoint(retriever())


@pytest.mark.parametrize("told", ["²", "Mon, 01 Jan 2030 00:00:00 +9999999999", "soon", "-5"])
def test_endpoint_a_time_that_cannot_be_read_is_none(told):
    assert server_module.asked_pause(httpx.Headers([(b"retry-after", told.encode())])) == 0


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8a/v1", "http://[::1/v1", "http://user:pw/v1", "http://a..b/v1", "http://h:70000/v1"]
)
def test_endpoint_an_address_without_a_server_is_refused(url):
    with pytest.raises(ValueError, match="names no server"):
        retriever(url=url)
