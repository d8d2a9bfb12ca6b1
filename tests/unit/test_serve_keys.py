"""Keys, roles, and which route asks for which."""

from __future__ import annotations

import os

import pytest
from fastapi import FastAPI

from embedder.config.serve import ServeConfig
from embedder.errors import ConfigError
from serve.api import describe
from serve.deployments.ingress import check_bind
from serve.keys import Keys, needed_role, read_keys

ROUTES = {
    ("GET", "/"): None,
    ("GET", "/static/{name}"): None,
    ("GET", "/live"): None,
    ("GET", "/health"): None,
    ("GET", "/ready"): None,
    ("GET", "/openapi.json"): "read",
    ("GET", "/docs"): None,
    ("GET", "/info"): "read",
    ("GET", "/v1/models"): "read",
    ("GET", "/v1/models/{name}"): "read",
    ("GET", "/v1/indexes"): "read",
    ("GET", "/v1/state"): "read",
    ("POST", "/embed"): "read",
    ("POST", "/v1/embeddings"): "read",
    ("POST", "/v1/rerank"): "read",
    ("POST", "/rerank"): "read",
    ("POST", "/v1/search"): "read",
    ("POST", "/v1/retrieve/{task}"): "read",
    ("POST", "/v1/indexes/{name}/documents"): "write",
    ("POST", "/v1/indexes/{name}/documents/delete"): "write",
    ("PUT", "/v1/indexes/{name}"): "admin",
    ("DELETE", "/v1/indexes/{name}"): "admin",
}
"""Every route with the role it needs: a new one must be put here by whoever adds it."""


def routes_of(api: FastAPI) -> set[tuple[str, str]]:
    """Method and path of every route of an application, those that its description leaves out too."""
    routes = [
        one for route in api.routes for one in getattr(getattr(route, "original_router", None), "routes", [route])
    ]
    return {(method, route.path) for route in routes for method in route.methods - {"HEAD"}}


def test_route_asks_for_the_role_that_is_written_here():
    assert routes_of(describe()) == ROUTES.keys()
    assert {route: needed_role(*route) for route in ROUTES} == ROUTES


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_route_that_no_rule_knows_asks_for_the_highest_role(method):
    assert needed_role(method, "/v1/new") == "admin"
    assert needed_role(method, "/health") == "admin"


def test_keys_have_roles_and_a_key_alone_may_read(tmp_path):
    path = tmp_path / "keys"
    path.write_text("# team\nread abc\nwrite def\n\nadmin ghi\n  jkl  \n", encoding="utf-8")
    keys = Keys(path)
    given = {name: keys.role(f"Bearer {name}") for name in ("abc", "def", "ghi", "jkl", "mno", "", "read")}
    assert given == {"abc": "read", "def": "write", "ghi": "admin", "jkl": "read", "mno": None, "": None, "read": None}
    assert keys.role("bearer ghi") == "admin" and keys.role("ghi") is None and keys.role("Basic ghi") is None
    assert keys.role("Bearer \udcff") is None


@pytest.mark.parametrize("text", ["", "# nothing\n\n", "owner abc\n", "read\n", "read a b\n", "a b\n"])
def test_keys_file_that_is_no_list_of_keys_is_refused_without_printing_it(tmp_path, text):
    path = tmp_path / "keys"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="api_keys_file") as error:
        read_keys(path)
    assert "abc" not in str(error.value)


def test_keys_are_replaced_without_a_restart_and_a_broken_file_changes_nothing(tmp_path):
    path = tmp_path / "keys"
    path.write_text("read old\n", encoding="utf-8")
    keys = Keys(path)
    path.write_text("read old\nadmin new\n", encoding="utf-8")
    assert (keys.role("Bearer old"), keys.role("Bearer new")) == ("read", "admin")
    replaced = tmp_path / "replaced"
    replaced.write_text("admin new\n", encoding="utf-8")
    os.replace(replaced, path)
    assert (keys.role("Bearer old"), keys.role("Bearer new")) == (None, "admin")
    path.write_text("", encoding="utf-8")
    assert keys.role("Bearer new") == "admin"
    path.unlink()
    assert keys.role("Bearer new") == "admin"


@pytest.mark.parametrize(
    ("host", "everywhere", "given", "is_refused"),
    [
        ("127.0.0.1", False, {}, False),
        ("localhost", False, {}, False),
        ("0.0.0.0", False, {}, True),
        ("10.0.0.7", False, {}, True),
        ("127.0.0.1", True, {}, True),
        ("0.0.0.0", False, {"api_keys_file": "keys"}, False),
        ("127.0.0.1", True, {"insecure": True}, False),
    ],
)
def test_ingress_beyond_loopback_needs_keys(host, everywhere, given, is_refused):
    settings = ServeConfig(**given)
    if is_refused:
        with pytest.raises(ConfigError, match=r"serve\.api_keys_file"):
            check_bind(settings, host, everywhere=everywhere)
    else:
        check_bind(settings, host, everywhere=everywhere)
