"""Whatever goes wrong, the answer has one shape."""

from __future__ import annotations

import pytest
from fastapi import FastAPI, HTTPException
from fastapi.testclient import TestClient
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from serve.errors import ApiError, install_handlers
from serve.schemas import ErrorResponse, SearchRequest

RAISED = {
    "refused": (ApiError(404, "no task 'x'", param="task", code="unknown_task"), 404, "invalid_request_error"),
    "own": (ApiError(502, "a shard failed"), 502, "server_error"),
    "http": (HTTPException(413, "too large"), 413, "invalid_request_error"),
    "late": (TimeoutError(), 503, "server_error"),
    "unexpected": (KeyError("secret of the server"), 500, "server_error"),
    "unavailable": (DeploymentUnavailableError(DeploymentID(name="encoder")), 503, "server_error"),
    "overloaded": (BackPressureError(5, 3), 429, "overloaded"),
}


@pytest.fixture(scope="module")
def client():
    api = FastAPI()
    install_handlers(api)

    @api.get("/raise/{name}")
    async def fail(name: str) -> None:
        raise RAISED[name][0]

    @api.post("/search")
    async def search(request: SearchRequest) -> dict[str, str]:
        return {"task": request.task}

    return TestClient(api, raise_server_exceptions=False)


@pytest.mark.parametrize("name", RAISED)
def test_every_failure_has_the_shape_and_status_of_its_kind(client, name):
    response = client.get(f"/raise/{name}")
    _, status, kind = RAISED[name]
    assert response.status_code == status
    assert ErrorResponse.model_validate(response.json()).error.type == kind
    assert response.headers.get("retry-after") == ("1" if status in {429, 503} else None)


def test_a_refusal_names_the_parameter(client):
    error = client.get("/raise/refused").json()["error"]
    assert error == {"message": "no task 'x'", "type": "invalid_request_error", "param": "task", "code": "unknown_task"}


def test_an_unexpected_failure_tells_nothing_of_the_server(client):
    assert client.get("/raise/unexpected").json()["error"]["message"] == "unexpected KeyError"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"task": "qa"}, "query"),
        ({"task": "qa", "query": "a", "limit": 0}, "limit"),
        ({"task": "qa", "query": "a", "top_k": 3}, "top_k"),
        ([1], None),
    ],
)
def test_a_body_of_another_form_is_refused_with_its_place(client, body, param):
    response = client.post("/search", json=body)
    error = ErrorResponse.model_validate(response.json()).error
    assert (response.status_code, error.param, error.type) == (400, param, "invalid_request_error")
    assert error.message.startswith(param or "body")


def test_a_body_that_is_no_json_is_refused(client):
    response = client.post("/search", content=b"{", headers={"content-type": "application/json"})
    assert response.status_code == 400
    assert ErrorResponse.model_validate(response.json()).error.message


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/nowhere", 404), ("GET", "/search", 405)])
def test_an_unknown_path_or_method_has_the_shape_too(client, method, path, status):
    response = client.request(method, path)
    assert response.status_code == status
    assert ErrorResponse.model_validate(response.json()).error.type == "invalid_request_error"
