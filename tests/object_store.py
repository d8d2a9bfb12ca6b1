"""A server that speaks S3 (moto) on loopback, and a proxy before it that refuses or holds what a test chooses."""

from __future__ import annotations

import http.client
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote

import boto3
from botocore.client import BaseClient
from pyarrow import fs

from embedder.storage.object_store import ObjectPath, upload
from tests.waiting import wait_until

SECRET = "not/to+be=seen"
KEYS = "AKIATEST:not%2Fto%2Bbe%3Dseen"
BUCKET = "bucket"
REFUSED = b"<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>refused by the test</Message></Error>"


@dataclass(frozen=True)
class ObjectStore:
    """Where the server listens."""

    endpoint: str
    """host:port"""

    def uri(self, name: str, bucket: str = BUCKET, endpoint: str = "") -> str:
        """The URI of a name, with credentials."""
        server = (endpoint or self.endpoint).replace(":", "%3A")
        return f"s3://{KEYS}@{bucket}/{name}?endpoint_override={server}&scheme=http"

    def open_uri(self, name: str) -> str:
        """The URI of a name without credentials, which the environment has."""
        return self.uri(name).replace(f"{KEYS}@", "")

    def path(self, name: str, bucket: str = BUCKET, endpoint: str = "") -> ObjectPath:
        """The same as a path."""
        return ObjectPath.parse(self.uri(name, bucket, endpoint))

    def client(self) -> BaseClient:
        """A client that may write any name."""
        key, _, secret = KEYS.partition(":")
        address, secret = f"http://{self.endpoint}", unquote(secret)
        return boto3.client(
            "s3", endpoint_url=address, region_name="us-east-1", aws_access_key_id=key, aws_secret_access_key=secret
        )


def send(folder: Path, place: ObjectPath) -> None:
    """All files of a folder."""
    for path in folder.rglob("*"):
        if path.is_file():
            upload(path, place / path.relative_to(folder).as_posix())


@contextmanager
def serve_objects(log: Path) -> Iterator[ObjectStore]:
    """Start the server on a free port, with an empty bucket."""
    command = [sys.executable, "-m", "tests.moto_server", "-H", "127.0.0.1", "-p", "0"]
    with log.open("w") as output:
        server = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        try:
            store = ObjectStore(_endpoint(log, server))
            creating = store.uri("").replace("/?", "?") + "&allow_bucket_creation=true"
            fs.FileSystem.from_uri(creating)[0].create_dir(BUCKET)
            yield store
        finally:
            server.terminate()
            server.wait(timeout=30)


def _endpoint(log: Path, server: subprocess.Popen[bytes]) -> str:
    running = re.compile(r"Running on http://(127\.0\.0\.1:\d+)")
    wait_until(lambda: bool(running.search(log.read_text())) or server.poll() is not None)
    found = running.search(log.read_text())
    assert found, f"the object store did not start: {log.read_text()[-500:]}"
    return found[1]


def _body(request: BaseHTTPRequestHandler) -> bytes:
    """The body as it was sent; of a chunked one also the lengths between the chunks, and the trailers."""
    if request.headers.get("Transfer-Encoding", "") != "chunked":
        return request.rfile.read(int(request.headers.get("Content-Length", 0)))
    body, size = b"", 1
    while size:
        line = request.rfile.readline()
        size = int(line.partition(b";")[0], 16)
        body += line + (request.rfile.read(size + 2) if size else b"")
    while body[-4:] != b"\r\n\r\n":
        body += request.rfile.readline()
    return body


@contextmanager
def proxy(store: ObjectStore, refuse: Callable[[str, str], bool]) -> Iterator[tuple[str, list[str]]]:
    """Forward requests, but answer 403 where `refuse(method, target)`; yields host:port, and the requests so far."""
    seen: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def forward(self) -> None:
            body = _body(self)
            seen.append(f"{self.command} {self.path}")
            if refuse(self.command, self.path):
                status, headers, answer = 403, [("Content-Type", "application/xml")], REFUSED
            else:
                server = http.client.HTTPConnection(store.endpoint)
                server.request(self.command, self.path, body, dict(self.headers))
                response = server.getresponse()
                status, headers, answer = response.status, response.getheaders(), response.read()
                server.close()
            self.send_response(status)
            length = [value for name, value in headers if name == "Content-Length"] or [str(len(answer))]
            dropped = {"connection", "content-length", "date", "server", "transfer-encoding"}
            for name, value in headers:
                if name.lower() not in dropped:
                    self.send_header(name, value)
            self.send_header("Content-Length", length[0])
            self.end_headers()
            self.wfile.write(answer)

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = forward

        def log_message(self, *_: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        server.server_close()
