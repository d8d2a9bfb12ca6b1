"""Keys, roles, and which route asks for which."""

from __future__ import annotations

import os
import re
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from datetime import date, datetime, timezone
from pathlib import Path

import pytest
from fastapi import FastAPI

import serve.access.keys
from embedder.config.serve import ServeConfig
from embedder.errors import ConfigError
from serve.access.key_scopes import KeyScope
from serve.access.keys import ApiKey, Keys, hashed_key, needed_role, read_keys
from serve.access.owner import Entrance
from serve.api import describe
from serve.backend import OWNER
from serve.deployments.ingress import check_bind
from serve.new_key import add_line
from serve.new_key import main as new_key
from tests.serving import MODEL, local_service, publish, run_config

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
    ("POST", "/v1/search/batch"): "read",
    ("POST", "/v1/retrieve/{task}"): "read",
    ("GET", "/metrics"): "read",
    ("POST", "/v1/indexes/{name}/documents/get"): "read",
    ("POST", "/v1/indexes/{name}/documents/count"): "read",
    ("POST", "/v1/indexes/{name}/documents/list"): "read",
    ("POST", "/v1/indexes/{name}/documents/metadata"): "write",
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


RAW = {name: f"{name}-0123456789abcdef" for name in ("abc", "def", "ghi", "jkl")}
ONE = "one-0123456789abcdef"
HASH = hashed_key(ONE).hex()
OTHER = hashed_key("other").hex()


def written(path, text):
    path.write_text(text, encoding="utf-8")
    path.chmod(0o600)
    return path


def role(keys, key):
    found = keys.find(f"Bearer {key}")
    return found and found.role


def test_keys_that_stand_there_as_they_are_have_roles_and_a_key_alone_may_read(tmp_path, caplog):
    text = f"# team\nread {RAW['abc']}\nwrite {RAW['def']}\n\nadmin {RAW['ghi']}\n  {RAW['jkl']}  \n"
    keys = Keys(written(tmp_path / "keys", text))
    given = {name: role(keys, key) for name, key in {**RAW, "none": "", "word": "read", "hash": "sha256:"}.items()}
    assert given == {
        "abc": "read",
        "def": "write",
        "ghi": "admin",
        "jkl": "read",
        "none": None,
        "word": None,
        "hash": None,
    }
    key = RAW["ghi"]
    assert keys.find(f"bearer {key}") and keys.find(key) is None and keys.find(f"Basic {key}") is None
    assert keys.find("Bearer \udcff") is None and keys.find(f"Bearer {hashed_key(key).hex()}") is None
    assert "4 keys stand there as they are" in caplog.text and not any(one in caplog.text for one in RAW.values())


def test_key_line_has_role_scope_expiry_and_hash(tmp_path):
    text = (
        f"read name=a index=live index=next task=qa where.tenant=a where.session=s1 expires=2027-01-01 sha256:{HASH}\n"
    )
    (key,) = read_keys(written(tmp_path / "keys", text))
    scope = KeyScope(frozenset({"live", "next"}), frozenset({"qa"}), {"tenant": "a", "session": "s1"})
    assert key == ApiKey("a", "read", hashed_key(ONE), scope, date(2027, 1, 1))
    assert HASH not in repr(key) and str(hashed_key(ONE)) not in repr(key)
    assert Keys(tmp_path / "keys").find(f"Bearer {ONE}") == key


@pytest.mark.parametrize("key", ["", "0123456789abcde"])
def test_key_that_is_too_short_is_none_even_if_the_file_has_its_hash(tmp_path, key):
    keys = Keys(written(tmp_path / "keys", f"admin sha256:{hashed_key(key).hex()}\n"))
    assert keys.find(f"Bearer {key}") is None and keys.find("") is None and keys.find("Bearer") is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# nothing\n\n",
        f"owner {RAW['abc']}\n",
        "read\n",
        "read 0123456789abcde\n",
        "admin a-7\n",
        "0123456789abcde\n",
        f"read {RAW['abc']} {RAW['def']}\n",
        f"{RAW['abc']} {RAW['def']}\n",
        f"read {RAW['abc']}",
        f"read {RAW['abc']}é\n",
        "\0" * 64,
        "\0" * 64 + "\n",
        f"sha256:{HASH}\n",
        f"read sha256:{HASH[1:]}\n",
        f"read sha256:{HASH}0\n",
        f"read SHA256:{HASH}\n",
        f"read where.tenant=a {RAW['abc']}\n",
        f"read where.tenant= sha256:{HASH}\n",
        f"read where.=a sha256:{HASH}\n",
        f"read where.tenant=a,session=b sha256:{HASH}\n",
        f"read where.tenant=a where.tenant=b sha256:{HASH}\n",
        f"read tenant=a sha256:{HASH}\n",
        f"read index= sha256:{HASH}\n",
        f"read name=a name=b sha256:{HASH}\n",
        f"read expires=soon sha256:{HASH}\n",
        f"read expires={RAW['abc']} sha256:{HASH}\n",
        f"admin where.tenant=a sha256:{HASH}\n",
        f"admin index=live sha256:{HASH}\n",
        f"admin task=qa sha256:{HASH}\n",
        f"read name=a sha256:{HASH}\nread name=a sha256:{OTHER}\n",
        f"read name=a sha256:{HASH}\nadmin name=b sha256:{HASH}\n",
        f"read name=a sha256:{HASH}\nread name=b\n",
        "read " + " ".join(f"where.{c * 20}={c * 20}" for c in "abcd") + f" sha256:{HASH}\n",
    ],
)
def test_keys_file_that_is_no_list_of_keys_is_refused_without_printing_it(tmp_path, text):
    with pytest.raises(ConfigError, match="api_keys_file") as error:
        read_keys(written(tmp_path / "keys", text))
    assert "abcdef" not in str(error.value) and HASH[:8] not in str(error.value) and "\n" not in str(error.value)


def test_keys_file_that_is_cut_short_anywhere_opens_nothing_new(tmp_path):
    """Faults 8.9: a half-written line `admin a-7` makes `a-7` a key."""
    lines = [
        f"read name=reader-of-one-tenant where.tenant=a expires=2027-01-01 sha256:{HASH}\n",
        f"admin name=administrator-of-all sha256:{OTHER}\n",
        f"admin {RAW['abc']}-and-much-longer\n",
    ]
    whole, path = "".join(lines), tmp_path / "keys"
    known = read_keys(written(path, whole))
    ends = [len("".join(lines[: i + 1])) for i in range(3)]
    for length in range(len(whole)):
        written(path, whole[:length])
        if length in ends:
            assert read_keys(path) == known[: ends.index(length) + 1]
        else:
            with pytest.raises(ConfigError):
                read_keys(path)


def test_keys_are_replaced_without_a_restart(tmp_path):
    path = written(tmp_path / "keys", f"read {RAW['abc']}\n")
    keys = Keys(path)
    written(path, f"read {RAW['abc']}\nadmin {RAW['def']}\n")
    assert (role(keys, RAW["abc"]), role(keys, RAW["def"])) == ("read", "admin")
    os.replace(written(tmp_path / "replaced", f"admin {RAW['def']}\n"), path)
    assert (role(keys, RAW["abc"]), role(keys, RAW["def"])) == (None, "admin")


def emptied(path):
    path.write_text("", encoding="utf-8")


def half_written(path):
    path.write_text(f"admin {RAW['ghi']}", encoding="utf-8")


def a_line_that_is_none(path):
    path.write_text(f"{path.read_text(encoding='utf-8')}admin a-7\n", encoding="utf-8")


def a_folder(path):
    path.unlink()
    path.mkdir()


def not_utf8(path):
    path.write_bytes(b"\xff\xfe\n")


def writable_by_all(path):
    path.chmod(0o666)


@pytest.mark.parametrize(
    "broken", [emptied, Path.unlink, half_written, a_line_that_is_none, a_folder, not_utf8, writable_by_all]
)
def test_keys_file_that_is_broken_lets_nobody_in_until_it_is_whole_again(tmp_path, caplog, broken):
    """Faults 8.9: an emptied or deleted key file leaves old keys valid."""
    text = f"read {RAW['abc']}\nadmin {RAW['def']}\n"
    path = written(tmp_path / "keys", text)
    keys = Keys(path)
    broken(path)
    for _ in range(3):
        assert [role(keys, key) for key in (*RAW.values(), "a-7", "")] == [None] * 6
    errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(errors) == 1 and "no API key is valid" in errors[0] and str(path) in errors[0]
    if path.is_dir():
        path.rmdir()
    written(path, text)
    assert [role(keys, key) for key in RAW.values()] == ["read", "admin", None, None]


@pytest.mark.parametrize(
    ("line", "mode", "is_told"),
    [
        (f"read sha256:{HASH}", 0o600, False),
        (f"read sha256:{HASH}", 0o640, False),
        (f"read sha256:{HASH}", 0o644, True),
        (f"read sha256:{HASH}", 0o660, True),
        (f"read {RAW['abc']}", 0o640, True),
        (f"read {RAW['abc']}", 0o600, False),
    ],
)
def test_keys_file_that_others_may_read_is_told_how_to_close_it(tmp_path, caplog, line, mode, is_told):
    path = written(tmp_path / "keys", f"{line}\n")
    path.chmod(mode)
    read_keys(path)
    assert (f"chmod 600 {path}" in caplog.text) == is_told


def test_key_expires_at_the_beginning_of_its_day_in_utc(monkeypatch):
    key = ApiKey("a", "read", b"", expires=date(2027, 1, 1))
    first = datetime(2027, 1, 1, tzinfo=timezone.utc).timestamp()
    for seconds, has_expired in ((first - 1, False), (first, True), (first + 10**6, True)):
        monkeypatch.setattr(serve.access.keys.time, "time", lambda seconds=seconds: seconds)
        assert key.has_expired == has_expired
    assert not ApiKey("a", "read", b"").has_expired


def test_new_key_command_prints_a_key_and_a_line_that_admits_it(tmp_path, capsys):
    wanted = ["--role", "write", "--index", "live", "--task", "qa", "--where", "tenant=a", "--expires", "2127-01-01"]
    new_key(wanted)
    key, line = (text.split(": ", 1)[1] for text in capsys.readouterr().out.splitlines())
    found = Keys(written(tmp_path / "keys", line + "\n")).find(f"Bearer {key}")
    assert (found.role, found.scope) == ("write", KeyScope(frozenset({"live"}), frozenset({"qa"}), {"tenant": "a"}))
    assert len(key) >= 32 and key not in line


def test_new_key_command_adds_to_a_file_that_its_owner_alone_can_read(tmp_path, capsys):
    path = tmp_path / "keys"
    new_key(["--role", "read", "--name", "one", "--file", str(path)])
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o640)
    keys = Keys(path)
    new_key(["--role", "admin", "--name", "two", "--file", str(path)])
    given = [line.removeprefix("key: ") for line in capsys.readouterr().out.splitlines()]
    assert [role(keys, key) for key in given] == ["read", "admin"]
    assert path.stat().st_mode & 0o777 == 0o640 and [one.name for one in tmp_path.iterdir()] == ["keys"]
    assert not any(key in path.read_text(encoding="utf-8") for key in given)


def test_keys_that_several_add_at_once_are_all_there(tmp_path):
    path, lines = tmp_path / "keys", [f"read name=key-{number} sha256:{number:064x}" for number in range(12)]
    with ThreadPoolExecutor(12) as pool:
        list(pool.map(lambda line: add_line(path, line), lines))
    assert sorted(path.read_text(encoding="utf-8").splitlines()) == sorted(lines)
    assert os.listdir(tmp_path) == ["keys"]


def test_new_key_command_of_the_docs_makes_keys(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    docs = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
    for command in re.findall(r"^python -m serve\.new_key (.*)$", docs, re.MULTILINE):
        new_key(command.split())
    admin, reader = read_keys(tmp_path / "keys")
    assert (admin.name, admin.scope.is_limited) == ("boss", False)
    assert reader.scope == KeyScope(frozenset({"live"}), frozenset({"qa"}), {"tenant": "a"}) and reader.expires


@pytest.mark.parametrize(
    "wanted",
    [
        ["--role", "admin", "--where", "tenant=a"],
        ["--role", "read", "--name", "two words"],
        ["--role", "read", "--where", "id=apple"],
        ["--role", "read", "--where", "tenant"],
        ["--role", "read", "--name", "one", "--file", "keys"],
        ["--role", "read", "--file", "broken"],
        ["--role", "read", "--file", "missing/keys"],
    ],
)
def test_new_key_command_refuses_in_one_line_and_leaves_the_file(tmp_path, monkeypatch, capsys, wanted):
    monkeypatch.chdir(tmp_path)
    files = {"keys": f"read name=one sha256:{HASH}\n", "broken": "read a b c\n"}
    for name, text in files.items():
        written(tmp_path / name, text)
    with pytest.raises(SystemExit, match="2"):
        new_key(wanted)
    printed = capsys.readouterr().out
    assert printed.startswith("error: ") and printed.count("\n") == 1
    assert {one.name: one.read_text(encoding="utf-8") for one in tmp_path.iterdir()} == files


@pytest.mark.parametrize(
    ("host", "given", "is_refused"),
    [
        ("127.0.0.1", {}, False),
        ("localhost", {}, False),
        ("0.0.0.0", {}, True),
        ("10.0.0.7", {}, True),
        ("0.0.0.0", {"api_keys_file": "keys"}, False),
        ("0.0.0.0", {"insecure": True}, False),
    ],
)
def test_ingress_beyond_loopback_needs_keys(host, given, is_refused):
    settings = ServeConfig(**given)
    if is_refused:
        with pytest.raises(ConfigError, match=r"serve\.api_keys_file"):
            check_bind(settings, host)
    else:
        check_bind(settings, host)


@pytest.mark.parametrize(
    "header", [(b"authorization", b"Bearer reading-key-of-a-test"), (b"api-key", b"reading-key-of-a-test")]
)
def test_gate_finds_the_owner_of_a_request_by_each_header_that_may_hold_the_key(tmp_path: Path, header) -> None:
    publish(tmp_path, MODEL, "v1")
    keys = tmp_path / "keys"
    keys.write_text("read reading-key-of-a-test\n", encoding="utf-8")
    keys.chmod(0o600)
    service = local_service(run_config(tmp_path, MODEL, api_keys_file=str(keys)))
    (key,) = read_keys(keys)
    scope = {"type": "http", "headers": [header, (b"content-length", b"10")], "client": ("10.0.0.1", 1)}

    def owner() -> str:
        assert Entrance(service).refusal(scope) is None
        return OWNER.get()

    assert copy_context().run(owner) == f"key {key.name}"
