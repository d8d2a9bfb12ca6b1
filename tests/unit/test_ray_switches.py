"""The switches of a Ray that `serve.start` starts itself: added as a whole, or not at all where somebody has chosen."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from serve.ray_switches import ENABLED, HAPROXY, PORTS, free_ports, set_switches

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="HAProxy mode is for Linux")


def test_switches_are_added_and_keep_what_is_set(tmp_path: Path) -> None:
    environment = {"RAY_SERVE_HAPROXY_RETRIES": "1"}
    set_switches(environment, tmp_path)
    assert environment["RAY_SERVE_HAPROXY_RETRIES"] == "1" and environment[ENABLED] == "1"
    assert HAPROXY.keys() | PORTS.keys() <= environment.keys()
    # The admin socket, which Ray makes open to all users, lies in a folder of this service alone.
    assert Path(environment["RAY_SERVE_HAPROXY_SOCKET_PATH"]).parent == tmp_path
    assert Path(environment["RAY_SERVE_HAPROXY_BINARY_PATH"]).is_file()


@pytest.mark.parametrize("chosen", ["0", "1"])
def test_switches_are_left_where_somebody_has_chosen(chosen: str, tmp_path: Path) -> None:
    environment = {ENABLED: chosen}
    set_switches(environment, tmp_path)
    assert environment == {ENABLED: chosen}


def test_port_that_is_taken_is_replaced_by_a_free_one() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = probe.getsockname()[1]
        probe.close()
        port = taken.getsockname()[1]
        assert free_ports([free])[0] == free
        assert free_ports([port])[0] not in {port, 0}


STARTING = """
import sys
from serve.ray_switches import free_ports
sys.stdin.readline()
print(*free_ports([int(sys.argv[1])] * 2), flush=True)
sys.stdin.readline()
"""


def test_starts_in_the_same_moment_take_different_ports() -> None:
    """None of them listens yet: what one has found free, the others must not find too."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command, piped = [sys.executable, "-c", STARTING, port], subprocess.PIPE
    starts = [subprocess.Popen(command, stdin=piped, stdout=piped, text=True) for _ in range(3)]
    for start in starts:
        assert start.stdin is not None
        start.stdin.write("begin\n")
        start.stdin.flush()
    found = [start.stdout.readline().split() for start in starts if start.stdout is not None]
    for start in starts:
        start.communicate("end\n", timeout=60)
    taken = [port for ports in found for port in ports]
    assert len(set(taken)) == len(taken) == 6 and port in taken
    # What they had claimed is free again with their ends.
    assert free_ports([int(port)]) == [int(port)]
