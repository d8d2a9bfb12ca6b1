"""Limits on the head of a request, alone and before every route: size, a body where none belongs, id, host names."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
from ray.serve import context
from starlette.datastructures import Headers
from starlette.testclient import TestClient

from serve.access.keys import Keys
from serve.api import make_api
from serve.middleware.request_head import (
    MOST_HEAD_BYTES,
    MOST_HEADERS,
    HeadLimits,
    head_refusal,
    keep_plain_id,
    needless_body,
    site_refusal,
)
from tests.serving import local_service, publish, run_config


def scope_of(method="GET", path="/live", **headers):
    """The scope of a request; `_` in a header's name stands for `-`."""
    raw = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()]
    return {"type": "http", "method": method, "path": path, "raw_path": path.encode(), "headers": raw}


@pytest.fixture(scope="module")
def service(tmp_path_factory, tiny_encoder_folder):
    work = tmp_path_factory.mktemp("head")
    publish(work, tiny_encoder_folder, "v1")
    return local_service(run_config(work, tiny_encoder_folder, max_body_bytes=20_000, host_names=[]))


@pytest.fixture(scope="module")
def client(service):
    with TestClient(make_api(service, lambda *_: None), base_url="http://127.0.0.1:8000") as client:
        yield client


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE", "OPTIONS"])
def test_head_with_a_body_where_none_belongs_is_refused(method):
    """Fault 8.4: a body that no route reads was kept whole by Ray's proxy and by the ingress."""
    assert needless_body(scope_of(method, content_length="1")).status == 400
    assert needless_body(scope_of(method, content_length="9" * 5000)).status == 400
    assert needless_body(scope_of(method, transfer_encoding="chunked")).status == 400
    assert needless_body(scope_of(method, content_length="00")) is None and needless_body(scope_of(method)) is None
    assert needless_body(scope_of(method, content_length="9"), 9) is None
    assert needless_body(scope_of(method, content_length="10"), 9).status == 400
    assert needless_body(scope_of("POST", content_length="1", transfer_encoding="chunked")) is None


@pytest.mark.parametrize("method", ["TRACE", "NEW", "GET", "DELETE"])
def test_method_that_no_route_knows_is_answered_with_those_that_there_are(client, method):
    answer = client.request(method, "/v1/embeddings", content=b"{}")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert client.request(method, "/v1/embeddings", content=b"x" * 20_001).status_code == 413


@pytest.mark.parametrize("length", ["-1", "+1", "1e3", "0x10", "", "1 2", "²"])
def test_head_whose_length_is_no_number_is_refused(length):
    assert head_refusal(scope_of("POST", content_length=length)).status == 400


def test_head_that_is_too_large_is_refused():
    """Fault 8.5, as far as the service can: what a server has read already."""
    assert head_refusal(scope_of(cookie="c" * MOST_HEAD_BYTES)).status == 431
    assert head_refusal(scope_of(path="/" + "p" * MOST_HEAD_BYTES)).status == 431
    assert head_refusal({**scope_of(), "query_string": b"q" * MOST_HEAD_BYTES}).status == 431
    many = {f"h{number}": "" for number in range(MOST_HEADERS + 1)}
    assert head_refusal(scope_of(**many)).status == 431
    many.popitem()
    assert head_refusal(scope_of(**many, cookie="")).status == 431
    assert head_refusal(scope_of(**many)) is None


@pytest.mark.parametrize("given", ["i" * 65, "i" * 60_000, "a b", 'a"}{"level":', "a\x1b[2J", "é", "a,b", ""])
def test_id_that_is_long_or_not_plain_is_replaced_in_the_request_and_in_rays_logs(given):
    """Fault 8.15: an id of 60 kB was logged as it is."""
    known = context._RequestContext(request_id=given or "-", route="/")
    token = context._serve_request_context.set(known)
    try:
        scope = scope_of(x_request_id=given)
        keep_plain_id(scope)
        (kept,) = Headers(scope=scope).getlist("x-request-id")
        assert len(kept) == 36 and kept != given
        assert context._get_serve_request_context() == replace(known, request_id=kept)
    finally:
        context._serve_request_context.reset(token)


@pytest.mark.parametrize("given", ["mine", "8d7b2c1e-0b0a-4c53-a8a0-6f6f1f0e6d35", "Root:1-67891233.abc_d"])
def test_id_that_is_plain_is_kept(given):
    scope = scope_of(x_request_id=given)
    keep_plain_id(scope)
    assert Headers(scope=scope)["x-request-id"] == given


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.0.0.1:8000", "127.9.9.9", "localhost:1", "LOCALHOST", "localhost.", "[::1]:8000"]
)
def test_host_name_of_loopback_is_answered(client, host):
    assert client.get("/live", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil.example", "10.0.0.1"),
        *("0.0.0.0", "evil@127.0.0.1.evil.example", "[::1", "", "[::ffff:10.0.0.1]", "2130706433"),
    ],
)
def test_host_name_of_another_is_refused_without_keys(client, host):
    """Fault 8.10: a page of any site could let its name point to loopback, and write."""
    for method, path in (("GET", "/"), ("GET", "/v1/indexes"), ("POST", "/v1/indexes/live/documents")):
        answer = client.request(method, path, headers={"host": host}, json={} if method == "POST" else None)
        assert answer.status_code == 403, (method, path)
        assert "serve.host_names" in answer.json()["error"]["message"]


def test_host_names_of_the_setting_are_answered():
    assert site_refusal(scope_of(host="embed.example:443"), ["embed.example"]) is None
    assert site_refusal(scope_of(host="other.example"), ["embed.example"]).status == 403
    assert site_refusal(scope_of(host="other.example"), None) is None
    assert site_refusal(scope_of(), []) is None, "no browser asks without a Host, and some health checks do"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_page_of_another_site_cannot_write_without_keys(method):
    for origin in ("http://evil.example", "https://evil.example:8000", "null", "", "http://127.0.0.1.evil.example"):
        for names in ([], None):
            scope = scope_of(method, host="127.0.0.1:8000", origin=origin)
            assert site_refusal(scope, names).status == 403
    for host, origin in (("127.0.0.1:8000", "http://localhost:8000"), ("10.1.2.3:8000", "http://10.1.2.3:8000")):
        assert site_refusal(scope_of(method, host=host, origin=origin), None) is None
    assert site_refusal(scope_of("GET", host="localhost", origin="http://evil.example"), []) is None
    asked = scope_of(method, host="localhost", origin="https://app.example")
    assert site_refusal(asked, [], ["https://app.example"]) is site_refusal(asked, [], ["*"]) is None
    assert site_refusal(asked, [], ["http://app.example"]).status == 403


def test_service_with_keys_answers_under_every_name(service, client, monkeypatch, tmp_path):
    key = "k" * 32
    (tmp_path / "keys").write_text(f"read {key}\n", encoding="utf-8")
    monkeypatch.setattr(service, "keys", Keys(tmp_path / "keys"))
    given = {"host": "evil.example", "origin": "http://evil.example", "authorization": f"Bearer {key}"}
    assert client.get("/v1/indexes", headers=given).status_code == 200


def test_refusal_of_a_head_is_in_the_shape_of_the_route_and_closes_the_connection(client):
    answer = client.request("GET", "/health", content=iter([b"x"]))
    assert answer.status_code == 400 and answer.headers["connection"] == "close"
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert client.request("GET", "/info", content=b"x").status_code == 422
    assert client.get("/live", headers={"cookie": "c" * MOST_HEAD_BYTES}).status_code == 431
    answer = client.post("/v1/embeddings", content=iter([b"x" * 30_000]))
    assert answer.status_code == 413 and answer.headers["connection"] == "close"


@pytest.mark.parametrize(
    ("path", "status"), [("/v1/embeddings", 413), ("/no/such/path", 404), ("/v1/indexes/none/documents", 413)]
)
def test_body_beyond_the_limit_is_not_read_to_its_end_whatever_the_route(client, path, status):
    """Whether its length is said or not, and whether the route reads it: the connection is closed."""
    for content in (bytes(30_000), iter([bytes(15_000)] * 2)):
        answer = client.post(path, content=content)
        assert answer.status_code in {status, 413} and answer.headers["connection"] == "close"
    assert "connection" not in client.post(path, content=b"{}").headers


def test_head_limits_stand_before_rays_part_of_a_request():
    """They are the outermost of what Ray is given: its own middleware takes the id, and its log holds it."""
    seen = []

    async def app(scope, receive, send):
        seen.append(Headers(scope=scope).get("x-request-id"))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    client = TestClient(HeadLimits(app))
    assert client.get("/live", headers={"x-request-id": "i" * 60_000}).status_code == 200
    assert client.get("/live", headers={"cookie": "c" * MOST_HEAD_BYTES}).status_code == 431
    assert client.request("GET", "/live", content=b"x" * (MOST_HEAD_BYTES + 1)).status_code == 400
    assert len(seen) == 1 and len(seen[0]) == 36


def test_line_of_a_request_holds_neither_its_id_nor_its_host(client, caplog):
    with caplog.at_level(logging.INFO, "ray.serve"):
        client.get("/live", headers={"x-request-id": "forged" * 20, "host": "evil.example"})
    (record,) = [record for record in caplog.records if record.message == "request"]
    assert record.status == 403 and "forged" not in str(vars(record)) and "evil" not in str(vars(record))
