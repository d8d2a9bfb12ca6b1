"""One question to a service that runs, over HTTP, in a tenth of a second: nothing is imported that takes time."""

from __future__ import annotations

import http.client
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from embedder.errors import ConfigError

KEY = "LLM_EMBEDDER_KEY"
"""Environment variable with the key of a service that asks for one."""
TIMEOUT_S = 35.0
"""Above the time after which the service itself gives up by default."""
LARGEST_ANSWER = 2**26
SHOWN_CHARACTERS = 300
STRANGER = "another program answers there; give the service's address by --url"


@dataclass(frozen=True)
class SearchWish:
    """A query and how it is to be answered."""

    query: str
    task: str | None
    """None: the only one that has documents."""
    k: int
    mode: str
    index: str | None
    """None: the alias that the service answers by default."""


def ask_service(url: str, question: SearchWish) -> dict[str, Any]:
    """The service's answer of POST /v1/search.

    Raises:
        ConfigError: nothing answers there, or the service refuses, with what it says.
    """
    body: dict[str, Any] = {"query": question.query, "k": question.k, "mode": question.mode}
    if question.index is not None:
        body["index"] = question.index
    body["task"] = question.task or only_task(url, question.index)
    answer = call(url, "POST", "/v1/search", body)
    if not isinstance(answer.get("results"), list):
        raise ConfigError(f"{url}: {STRANGER}")
    return answer


def only_task(url: str, index: str | None) -> str:
    """The task whose documents are searched where none was named.

    Raises:
        ConfigError: there are several, or there is no such index, or no document in it.
    """
    answer = call(url, "GET", "/v1/indexes")
    if not isinstance(served := answer.get("data"), list) or not all("collections" in each for each in served):
        raise ConfigError(f"{url}: {STRANGER}")
    wanted = meant_index(served, index or None)
    if wanted is None:
        raise ConfigError(f"--index {index}: {url} serves {[each['name'] for each in served]}")
    tasks = tasks_with_documents(wanted)
    if len(tasks) != 1:
        found = f"has documents of {', '.join(tasks)}; give one by --task" if tasks else "has no documents"
        raise ConfigError(f"{url}: index {wanted['name']!r} {found}")
    return tasks[0]


def meant_index(served: Sequence[dict[str, Any]], index: str | None) -> dict[str, Any] | None:
    """Of the indexes as `GET /v1/indexes` tells them the one of an alias, or by None the default; None: none is it."""
    return next((each for each in served if (each["default"] if index is None else each["name"] == index)), None)


def tasks_with_documents(index: dict[str, Any]) -> list[str]:
    """The tasks of such an index that can be searched, sorted."""
    return sorted(task for task, state in index["collections"].items() if state["documents"])


def check_url(url: str) -> None:
    """Refuse what is no address of a service.

    Raises:
        ConfigError: with what one looks like.
    """
    try:
        parts = urlsplit(url)
        is_address = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        is_address = False
    if not is_address or "@" in parts.netloc:
        raise ConfigError(f"--url {url!r:.200}: give http://HOST:PORT or https://HOST:PORT, without user or key")


def call(url: str, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """One request, and the JSON object that answers it.

    Raises:
        ConfigError: nothing answers there, or not as this service does, or it refuses.
    """
    check_url(url)
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=TIMEOUT_S)
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get(KEY):
        headers["Authorization"] = f"Bearer {key}"
    try:
        content = None if body is None else json.dumps(body).encode()
        connection.request(method, parts.path.rstrip("/") + path, content, headers)
        response = connection.getresponse()
        status, text = response.status, response.read(LARGEST_ANSWER)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise ConfigError(
            f"{url}: no service answers ({' '.join(str(error).split()) or type(error).__name__}); start one by "
            "`llm-embedder serve`, or name another by --url"
        ) from error
    finally:
        connection.close()
    return read_answer(url, status, text)


def read_answer(url: str, status: int, text: bytes) -> dict[str, Any]:
    """The answer, once it is one.

    Raises:
        ConfigError: the service refuses, or another program answers.
    """
    try:
        answer = json.loads(text)
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict):
        raise ConfigError(f"{url}: {STRANGER} (status {status})")
    if status != 200:
        error = answer.get("error")
        said = error.get("message") if isinstance(error, dict) else error or answer.get("detail")
        remedy = f"; put its key into {KEY}" if status in {401, 403} else ""
        raise ConfigError(f"{url}: status {status}: {' '.join(str(said).split()):.500}{remedy}")
    return answer


def answer_lines(answer: dict[str, Any]) -> list[str]:
    """The hits for the user: score, place and title of each, then the beginning of its text."""
    lines = []
    for number, hit in enumerate(answer["results"][0], 1):
        title = f", {' '.join(hit['title'].split())}" if hit.get("title") else ""
        lines += [f"{number}. {hit['score']:.3f} {_place(hit)}{title}", f"   {_short(hit.get('text') or '')}"]
    return lines or ["nothing was found; `llm-embedder index list` tells how many documents each task has"]


def _place(hit: dict[str, Any]) -> str:
    """Where a hit stands: the file and page of a document, else its id."""
    metadata = hit.get("metadata") or {}
    place = "/".join(part for part in (hit["dataset"], metadata.get("file") or hit["id"]) if part)
    return f"{place}, page {metadata['page']}" if metadata.get("page") else place


def _short(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= SHOWN_CHARACTERS else flat[: SHOWN_CHARACTERS - 3] + "..."
