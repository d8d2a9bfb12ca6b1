"""A server on loopback that speaks Azure's protocol: Azurite, where this machine has it.

It comes with `npm install --prefix .cache/azurite azurite@3.37.0`. There is none like it for Google Cloud Storage:
fake-gcs-server 1.5x takes no conditional put by the XML API, which is what obstore sends.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from email.utils import formatdate
from pathlib import Path
from socket import create_connection, socket
from urllib.parse import quote
from urllib.request import Request, urlopen

from embedder.storage.object_store import ObjectPath
from tests.waiting import wait_until

ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""Of Azurite's own account, the same everywhere."""
CONTAINER = "bucket"
AZURITE = Path(__file__).parents[1] / ".cache" / "azurite" / "node_modules" / ".bin" / "azurite-blob"


def azurite_command() -> str | None:
    """The program of Azurite; None: it is not here."""
    return shutil.which("azurite-blob") or (str(AZURITE) if AZURITE.is_file() else None)


def _free_port() -> int:
    with closing(socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@contextmanager
def _running(command: list[str], port: int, log: Path) -> Iterator[None]:
    """A server, from when it answers until the block ends."""

    def answers() -> bool:
        try:
            create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            return server.poll() is not None
        return True

    with log.open("w") as output:
        server = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=log.parent)
        try:
            wait_until(answers)
            assert server.poll() is None, f"{command[0]} did not start: {log.read_text()[-500:]}"
            yield
        finally:
            server.terminate()
            server.wait(timeout=30)


@contextmanager
def serve_azure(command: str, log: Path) -> Iterator[ObjectPath]:
    """Start Azurite with an empty container."""
    port = _free_port()
    options = ["--blobPort", str(port), "--inMemoryPersistence", "--disableTelemetry", "--skipApiVersionCheck"]
    with _running([command, *options], port, log):
        _create_container(port)
        endpoint = quote(f"127.0.0.1:{port}/{ACCOUNT}", safe="")
        yield ObjectPath.parse(
            f"az://{ACCOUNT}:{quote(KEY, safe='')}@{CONTAINER}/runs?endpoint_override={endpoint}&scheme=http"
        )


def _create_container(port: int) -> None:
    """Make the container by a request signed as Azure asks for it; obstore makes none."""
    date, version = formatdate(usegmt=True), "2021-08-06"
    resource = f"/{ACCOUNT}/{ACCOUNT}/{CONTAINER}\nrestype:container"
    text = "PUT" + "\n" * 12 + f"x-ms-date:{date}\nx-ms-version:{version}\n{resource}"
    signature = base64.b64encode(hmac.new(base64.b64decode(KEY), text.encode(), hashlib.sha256).digest()).decode()
    request = Request(
        f"http://127.0.0.1:{port}/{ACCOUNT}/{CONTAINER}?restype=container",
        headers={"x-ms-date": date, "x-ms-version": version, "Authorization": f"SharedKey {ACCOUNT}:{signature}"},
        method="PUT",
    )
    urlopen(request, timeout=30).close()
