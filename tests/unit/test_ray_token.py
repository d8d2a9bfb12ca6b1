"""Ray's token is its user's alone, and a Ray that asks for none is refused before anything starts on it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
import ray

from embedder.config.cluster import ClusterConfig
from embedder.errors import ClusterError, ConfigError
from embedder.run import ray_token
from embedder.run.ray_start import starting_ray
from embedder.run.ray_token import prepare_own_ray, refuse_open_ray, refuse_shared_token, token_file
from ray_jobs.cluster.session import connect
from serve.app import check_ray

OUTSIDE = "192.0.2.7"
SETTING = "cluster.allow_no_authentication=true"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without a token, and an environment that says nothing of Ray."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


class _Head(grpc.GenericRpcHandler):
    """Ray's head as far as a stranger sees it."""

    def __init__(self, asks_for_token: bool) -> None:
        self.asks_for_token, self.called = asks_for_token, list[str]()

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        self.called.append(details.method)

        def answer(_: bytes, context: grpc.ServicerContext) -> bytes:
            if self.asks_for_token and "authorization" not in dict(context.invocation_metadata()):
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "no token")
            return b""

        return grpc.unary_unary_rpc_method_handler(answer)


@contextmanager
def head(asks_for_token: bool) -> Iterator[tuple[str, _Head]]:
    """Listens on loopback; its address, and what it was asked."""
    handler = _Head(asks_for_token)
    server = grpc.server(futures.ThreadPoolExecutor(1), handlers=[handler])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}", handler
    finally:
        server.stop(None).wait()


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620, 0o601])
@pytest.mark.parametrize("named", [True, False])
def test_token_file_that_others_can_use_is_refused(home: Path, monkeypatch, mode: int, named: bool) -> None:
    """Issue 20, item 8: Ray 2.60.0 itself writes the file so that everybody can read it."""
    path = home / "token" if named else home / ".ray" / "auth_token"
    path.parent.mkdir(exist_ok=True)
    path.write_text("a" * 64)
    if named:
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(path))
    path.chmod(mode)
    for refused in (refuse_shared_token, lambda: prepare_own_ray(OUTSIDE, allowed=True)):
        with pytest.raises(ConfigError, match=f"mode {mode:03o}.*chmod 600 {path}") as error:
            refused()
        assert "\n" not in str(error.value) and "aaa" not in str(error.value)
    path.chmod(0o600)
    refuse_shared_token()
    path.chmod(mode)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "b" * 64)
    refuse_shared_token()


def test_own_ray_gets_a_token_that_only_its_user_can_read(home: Path) -> None:
    prepare_own_ray(OUTSIDE, allowed=False)
    path = home / ".ray" / "auth_token"
    assert token_file() == path and path.stat().st_mode & 0o777 == 0o600
    token = path.read_text()
    assert len(token) == 64 and int(token, 16)
    prepare_own_ray(OUTSIDE, allowed=False)
    assert path.read_text() == token


def test_own_ray_gets_a_token_where_the_home_cannot_be_written_to(home: Path, monkeypatch) -> None:
    (home / ".ray").write_text("a file where the folder should be")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "")
    prepare_own_ray(OUTSIDE, allowed=False)
    assert token_file() is None


def test_own_ray_without_a_token_is_refused_unless_it_is_on_loopback(home: Path, monkeypatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(ConfigError, match=f"RAY_AUTH_MODE=disabled.*{OUTSIDE}.*unset RAY_AUTH_MODE.*{SETTING}"):
        prepare_own_ray(OUTSIDE, allowed=False)
    prepare_own_ray(OUTSIDE, allowed=True)
    prepare_own_ray("127.0.0.1", allowed=False)
    assert not (home / ".ray").exists()


@pytest.mark.parametrize("mode", ["token", "disabled"])
def test_open_ray_is_refused_whatever_the_environment_says(home: Path, monkeypatch, mode: str) -> None:
    """Fault 8.1: with a token in the environment one can connect to a Ray that asks for none."""
    monkeypatch.setenv("RAY_AUTH_MODE", mode)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "a" * 64)
    with head(asks_for_token=False) as (address, _):
        for named in (address, f"ray://{address}"):
            with pytest.raises(ConfigError, match=f"no token.*ray stop.*RAY_AUTH_MODE=token.*{SETTING}") as error:
                refuse_open_ray(named, allowed=False)
            assert "\n" not in str(error.value)
    with head(asks_for_token=True) as (address, asked):
        refuse_open_ray(address, allowed=False)
        assert asked.called == [ray_token.GCS_METHOD]


def test_silent_ray_is_refused_and_an_allowed_one_not_asked(monkeypatch) -> None:
    monkeypatch.setattr(ray_token, "PROBE_S", 0.2)
    with pytest.raises(ConfigError, match=r"no Ray answers at 127\.0\.0\.1:1 .*RAY_ADDRESS"):
        refuse_open_ray("127.0.0.1:1", allowed=False)
    with head(asks_for_token=False) as (address, asked):
        refuse_open_ray(address, allowed=True)
        assert not asked.called


@pytest.mark.parametrize("start", [connect, check_ray])
def test_job_and_service_refuse_an_open_ray_before_they_connect(home: Path, monkeypatch, start) -> None:
    with head(asks_for_token=False) as (address, asked):
        monkeypatch.setenv("RAY_ADDRESS", f"ray://{address}")
        with pytest.raises(ConfigError, match="asks for no token"):
            start(ClusterConfig())
        assert asked.called == [ray_token.CLIENT_METHOD]


def test_serve_run_refuses_an_open_ray_in_one_line(tmp_path: Path) -> None:
    run = tmp_path / "run.yaml"
    run.write_text(f"paths: {{work: {tmp_path}}}\nencoder: {{model: m, pooling: cls}}\n", encoding="utf-8")
    serve = [str(Path(sys.executable).with_name("serve")), "run", "serve.app:build", f"run={run}"]
    with head(asks_for_token=False) as (address, _):
        command = [*serve, "--address", f"ray://{address}"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=120)
    assert done.returncode == 2
    line = done.stdout.splitlines()[-1]
    assert line.startswith(f"error: Ray at ray://{address} asks for no token") and line.endswith(SETTING)


def test_ray_that_does_not_start_is_told_with_its_reason_and_the_remedy():
    with (
        pytest.raises(ClusterError, match=r"\(Unknown keyword argument.*RAY_ADDRESS to a Ray that runs"),
        starting_ray(),
    ):
        ray.init(address="local", memory_of_an_elephant=True)
