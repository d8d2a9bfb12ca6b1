"""Whatever goes wrong, the answer has the shape of the API that was asked."""

from __future__ import annotations

import pickle

import pytest
from fastapi import FastAPI, HTTPException
from fastapi.testclient import TestClient

from embedder.errors import BundleError, ConfigError, DeviceError, ModelError, StorageError
from serve.http_errors import ApiError, install_handlers
from serve.schemas.search_schemas import SearchRequest
from serve.schemas.state_schemas import ErrorResponse, TeiError

RAISED = {
    "refused": (ApiError(404, "no task 'x'", param="task", code="unknown_task"), 404, "invalid_request_error"),
    "stranger": (ApiError(401, "no key"), 401, "authentication_error"),
    "reader": (ApiError(403, "may only read"), 403, "permission_error"),
    "own": (ApiError(502, "a shard failed"), 502, "server_error"),
    "http": (HTTPException(413, "too large"), 413, "invalid_request_error"),
    "late": (TimeoutError(), 503, "server_error"),
    "unexpected": (KeyError("secret of the server"), 500, "server_error"),
    "unavailable": (ApiError(503, "not ready"), 503, "server_error"),
    "overloaded": (ApiError(429, "too many"), 429, "overloaded"),
    "wrong": (ConfigError("no such task"), 400, "invalid_request_error"),
    "full": (StorageError("/secret/path: the disk is full"), 507, "server_error"),
    "unreadable": (OSError(116, "Stale file handle", "/secret/path"), 503, "server_error"),
    "damaged": (BundleError("/secret/path: SHA-256 differs"), 503, "server_error"),
    "no memory": (ModelError("/secret/path: does not fit into memory"), 503, "server_error"),
    "no gpu": (DeviceError("/secret/path: cannot use a GPU"), 503, "server_error"),
}


@pytest.fixture(scope="module")
def client():
    api = FastAPI()
    install_handlers(api)

    @api.get("/raise/{name}")
    async def fail(name: str) -> None:
        raise RAISED[name][0]

    @api.get("/embed")
    async def fail_as_tei(name: str) -> None:
        raise RAISED[name][0]

    @api.post("/search")
    async def search(request: SearchRequest) -> dict[str, str]:
        return {"task": request.task}

    return TestClient(api, raise_server_exceptions=False)


@pytest.mark.parametrize("name", RAISED)
def test_http_error_has_the_shape_and_status_of_its_kind(client, name):
    response = client.get(f"/raise/{name}")
    _, status, kind = RAISED[name]
    assert response.status_code == status
    assert ErrorResponse.model_validate(response.json()).error.type == kind
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert response.headers.get("retry-after") == ("1" if status in {429, 503} else None)
    assert response.headers.get("x-should-retry") == ("false" if status in {500, 502, 507} else None)


@pytest.mark.parametrize(
    ("name", "status", "kind"),
    [
        ("wrong", 422, "validation"),
        ("http", 413, "validation"),
        ("overloaded", 429, "overloaded"),
        ("late", 503, "unhealthy"),
        ("unexpected", 500, "backend"),
        ("stranger", 401, "validation"),
    ],
)
def test_http_error_on_a_route_of_tei_has_its_shape(client, name, status, kind):
    response = client.get(f"/embed?name={name}")
    assert (response.status_code, TeiError.model_validate(response.json()).error_type) == (status, kind)


def test_api_error_names_the_parameter_and_survives_the_way_from_a_replica(client):
    error = client.get("/raise/refused").json()["error"]
    assert error == {"message": "no task 'x'", "type": "invalid_request_error", "param": "task", "code": "unknown_task"}
    assert pickle.loads(pickle.dumps(RAISED["refused"][0])).detail == RAISED["refused"][0].detail


@pytest.mark.parametrize("name", ["unexpected", "damaged", "full", "unreadable"])
def test_http_error_of_an_unexpected_failure_tells_nothing_of_the_server(client, name):
    assert "secret" not in client.get(f"/raise/{name}").text


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"task": "qa"}, None),
        ({"task": "qa", "query": 7}, "query"),
        ({"task": "qa", "query": "a", "k": 0}, "k"),
        ({"task": "qa", "query": "a", "top_k": 3}, "top_k"),
        ([1], None),
    ],
)
def test_http_error_of_a_body_of_another_form_names_the_field(client, body, param):
    response = client.post("/search", json=body)
    error = ErrorResponse.model_validate(response.json()).error
    assert (response.status_code, error.param, error.type) == (400, param, "invalid_request_error")
    assert error.message.startswith(param or "body")


def test_http_error_of_a_body_that_is_no_json_is_a_refusal(client):
    response = client.post("/search", content=b"{", headers={"content-type": "application/json"})
    assert response.status_code == 400
    assert ErrorResponse.model_validate(response.json()).error.message


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/nowhere", 404), ("GET", "/search", 405)])
def test_http_error_of_an_unknown_path_or_method_has_the_shape_too(client, method, path, status):
    response = client.request(method, path)
    assert response.status_code == status
    assert ErrorResponse.model_validate(response.json()).error.type == "invalid_request_error"
    assert response.headers.get("allow") == ("POST" if status == 405 else None)
