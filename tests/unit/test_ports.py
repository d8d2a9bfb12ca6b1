"""Which ports are open, and what they answer to a stranger: told of servers in this process."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from prometheus_client import start_http_server

from serve import ports
from serve.ports import DRIVER, Port, answer_of, markdown, open_ports, rows
from tests.unit.test_ray_token import head


@contextmanager
def listener(family: socket.AddressFamily, host: str) -> Iterator[int]:
    with socket.socket(family) as own:
        own.bind((host, 0))
        own.listen()
        yield own.getsockname()[1]


@pytest.mark.parametrize(
    ("family", "host", "on"),
    [
        (socket.AF_INET, "127.0.0.1", "loopback"),
        (socket.AF_INET, "0.0.0.0", "all interfaces"),
        (socket.AF_INET6, "::ffff:127.0.0.1", "loopback"),
        (socket.AF_INET6, "::", "all interfaces"),
    ],
)
def test_open_port_is_found_with_its_reach(family: socket.AddressFamily, host: str, on: str) -> None:
    with listener(family, host) as number:
        found = [port for port in open_ports([os.getpid()]) if port.number == number]
        assert [(port.role, port.host, port.on) for port in found] == [(DRIVER, host, on)]
        with socket.create_connection((found[0].target.rpartition(":")[0], number)):
            pass
    assert not [port for port in open_ports([os.getpid()]) if port.number == number]


def test_open_port_is_found_though_another_file_is_closed_meanwhile(monkeypatch) -> None:
    read = os.readlink

    def closed(path: str | os.PathLike[str]) -> str:
        if str(path).endswith("/0"):
            raise FileNotFoundError(path)
        return read(path)

    monkeypatch.setattr(ports.os, "readlink", closed)
    with listener(socket.AF_INET, "127.0.0.1") as number:
        assert number in {port.number for port in open_ports([os.getpid()])}


def test_answer_tells_a_server_that_asks_for_the_token_from_one_that_does_not() -> None:
    """Fault 8.1: a port that takes calls without the token runs code."""
    for asks, answer in ((True, ports.TOKEN), (False, ports.OPEN)):
        with head(asks_for_token=asks) as (address, asked):
            number = int(address.rpartition(":")[2])
            assert answer_of(Port("replica", "127.0.0.1", number)) == answer
            assert set(asked.called) == set(ports.SAFE_CALLS)


def test_answer_of_metrics_is_numbers_where_they_are_expected_alone() -> None:
    server, thread = start_http_server(0, "127.0.0.1")
    try:
        number = server.server_port
        assert answer_of(Port("autoscaler", "127.0.0.1", number)) == ports.NUMBERS
        assert answer_of(Port("replica", "127.0.0.1", number)).startswith(ports.OPEN)
    finally:
        server.shutdown()
        thread.join()


def test_rows_of_a_kind_are_one(monkeypatch) -> None:
    monkeypatch.setattr(ports, "answer_of", lambda port: ports.TOKEN)
    found = rows([Port("replica", "::", 1), Port("replica", "::", 2), Port("raylet", "127.0.0.1", 3)])
    assert found == [("raylet", "any", "loopback", ports.TOKEN), ("replica", "any", "all interfaces", ports.TOKEN)]
    assert markdown(found).splitlines()[2:] == [f"| {' | '.join(row)} |" for row in found]
