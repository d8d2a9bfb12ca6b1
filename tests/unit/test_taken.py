"""Starts on a port, name or route that is taken."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from embedder.errors import ConfigError
from serve.start import main
from serve.taken import refuse_taken_name, refuse_taken_port
from tests.cluster.conftest import free_port


@contextmanager
def listening(applications: object) -> Iterator[int]:
    """The port of a server that answers as Ray Serve's proxy does."""

    class Routes(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/-/routes" else 404)
            self.end_headers()
            self.wfile.write(json.dumps(applications).encode())

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Routes) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield int(server.server_address[1])
        server.shutdown()
        thread.join()


def test_port_that_nobody_listens_on_is_free():
    refuse_taken_port("127.0.0.1", free_port(), "embedder", "/")


@pytest.mark.parametrize(
    ("name", "prefix", "remedy"),
    [("embedder", "/other", "--name"), ("other", "/", "--route-prefix"), ("other", "/other", None)],
)
def test_port_of_a_ray_serve_is_refused_where_name_or_route_is_taken(name, prefix, remedy):
    with listening({"/": "embedder"}) as port:
        if remedy is None:
            refuse_taken_port("0.0.0.0", port, name, prefix)
        else:
            with pytest.raises(ConfigError, match=remedy):
                refuse_taken_port("127.0.0.1", port, name, prefix)


def test_application_that_is_still_being_deployed_has_its_name_already():
    with pytest.raises(ConfigError, match="--name"):
        refuse_taken_name({"embedder": None}, "embedder", "/")


@pytest.mark.parametrize("is_mute", [False, True])
def test_start_at_a_port_of_another_program_is_refused_within_a_second(capsys, is_mute):
    began = time.monotonic()
    if is_mute:
        with socket.create_server(("127.0.0.1", 0)) as server:
            _refused(server.getsockname()[1])
    else:
        with listening("not Ray") as port:
            _refused(port)
    printed = capsys.readouterr().out
    assert "taken by another program" in printed and "--port" in printed and len(printed.splitlines()) == 1
    assert time.monotonic() - began < 2


def _refused(port: int) -> None:
    with pytest.raises(SystemExit) as error:
        main(["--config", "no-such-file.yaml", "--port", str(port)])
    assert error.value.code == 2
