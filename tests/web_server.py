"""An application behind a real HTTP server, in a thread of the test's process."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import uvicorn


@contextmanager
def answering(app: Any, port: int, path: str = "/live", log_level: str = "warning") -> Iterator[str]:
    """Serve an ASGI application on loopback until the block ends; gives its URL once it answers `path` with 200."""
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level=log_level))
    thread = threading.Thread(target=server.run)
    thread.start()
    url = f"http://127.0.0.1:{port}"
    try:
        with httpx.Client(transport=httpx.HTTPTransport(retries=20)) as client:
            assert client.get(f"{url}{path}").status_code == 200
        yield url
    finally:
        server.should_exit = True
        thread.join()
