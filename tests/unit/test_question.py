"""`llm-embedder ask`, against a server of the tests' own that answers as the service does."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from embedder.cli.question import KEY, SearchWish, answer_lines, ask_service
from embedder.errors import ConfigError

HIT = {"id": "p1", "dataset": "d", "score": 0.5, "text": "a  text\nof two lines", "title": None, "metadata": None}
SERVED = {
    "data": [{"name": "live", "default": True, "collections": {"qa": {"documents": 2}, "tool": {"documents": 0}}}]
}


class Service(HTTPServer):
    """Gives the next answer, and keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: list[tuple[int, object]] = []
        self.asked: list[dict[str, object]] = []
        self.keys: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Service

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append({"path": self.path, **json.loads(body)})
        self.answer(*self.server.answers.pop(0))

    def do_GET(self) -> None:
        self.answer(200, SERVED)

    def answer(self, status: int, content: object) -> None:
        self.server.keys.append(self.headers["Authorization"])
        body = content.encode() if isinstance(content, str) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def service() -> Iterator[Service]:
    server = Service()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def question(**given) -> SearchWish:
    return SearchWish(**{"query": "who?", "task": None, "k": 3, "mode": "dense", "index": None, **given})


def test_ask_searches_the_only_task_with_documents_and_sends_the_key(service, monkeypatch):
    monkeypatch.setenv(KEY, "a-key")
    service.answers.append((200, {"results": [[HIT]]}))
    answer = ask_service(service.url, question())
    asked = {"path": "/v1/search", "query": "who?", "k": 3, "mode": "dense", "task": "qa"}
    assert (service.asked, service.keys[-1]) == ([asked], "Bearer a-key")
    assert answer_lines(answer) == ["1. 0.500 d/p1", "   a text of two lines"]


def test_ask_repeats_what_the_service_refuses_in_one_line(service):
    service.answers += [(404, {"error": {"message": "no index 'lve';\nthere is 'live'"}}), (403, {"error": "no"})]
    with pytest.raises(ConfigError, match=r"status 404: no index 'lve'; there is 'live'$"):
        ask_service(service.url, question(task="qa", index="lve"))
    with pytest.raises(ConfigError, match=f"status 403: no; put its key into {KEY}$"):
        ask_service(service.url, question(task="qa"))
    with pytest.raises(ConfigError, match=r"--index lve: .* serves \['live'\]"):
        ask_service(service.url, question(index="lve"))


def test_ask_tells_where_no_service_or_another_program_answers(service):
    service.answers.append((200, "<html>"))
    with pytest.raises(ConfigError, match="another program answers there"):
        ask_service(service.url, question(task="qa"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(ConfigError, match=r"no service answers .* start one by `llm-embedder serve`"):
        ask_service(f"http://127.0.0.1:{port}", question())
    for url in ("localhost:8000", "http://user:pw@127.0.0.1:1", "file:///etc"):
        with pytest.raises(ConfigError, match="give http://HOST:PORT"):
            ask_service(url, question())


def test_ask_tells_file_page_and_heading_of_a_document():
    metadata = {"file": "guide/badge.pdf", "page": 2, "position": 4}
    hit = {**HIT, "id": "guide/badge.pdf#12ab", "title": "Badges > Loss", "metadata": metadata}
    assert answer_lines({"results": [[hit]]})[0] == "1. 0.500 d/guide/badge.pdf, page 2, Badges > Loss"


def test_ask_says_that_nothing_was_found():
    assert answer_lines({"results": [[]]})[0].startswith("nothing was found")
