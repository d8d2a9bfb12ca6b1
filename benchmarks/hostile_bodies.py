"""Attacks by requests that are well formed: bodies within every limit that cost far more than they should."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import cycle, islice

import httpx

from benchmarks.hostile_requests import MIB, Attack, Target
from benchmarks.serving_index import ALIAS, TASK

HEAVY = 8
"""Requests of an attack that one call sends, one after the other."""
FRESH = 200
"""Documents that are written, because new ones are searched in another way."""
TITLED: list[tuple[str, object]] = [("title", "t" * 4 * MIB), ("metadata", {"m": "m" * 4 * MIB})]
"""Fields that make a document giant."""


def post(target: Target, requests: Iterable[tuple[str, bytes | str]], method: str = "POST") -> Counter[str]:
    """Send bodies, each to its path, from one client; statuses."""
    ended = Counter[str]()
    headers = {"Content-Type": "application/json"}
    if target.key:
        headers["Authorization"] = f"Bearer {target.key}"
    transport = httpx.HTTPTransport(local_address=target.source)
    until = time.monotonic() + 2 * target.seconds
    url = f"http://{target.host}:{target.port}"
    with httpx.Client(base_url=url, headers=headers, timeout=target.seconds, transport=transport) as client:
        for path, body in requests:
            try:
                ended[str(client.request(method, path, content=body).status_code)] += 1
            except httpx.TimeoutException:
                ended["open"] += 1
            except httpx.HTTPError:
                ended["closed"] += 1
            if time.monotonic() > until:
                break
    return ended


def _filled(before: str, piece: str, after: str, size: int = MIB) -> str:
    """JSON of about that size: as many pieces as fit between the two ends."""
    return before + ",".join([piece] * (size // (len(piece) + 1))) + after


def wrong_lists(target: Target) -> Counter[str]:
    """Fault 8.2: lists of a MiB and of 7 MiB whose every item is wrong, on every route that takes a list."""
    pieces = ["{}", "[]", "null", "1", '{"text": {}}', '"a"']
    ends = [
        ("/v1/embeddings", '{"model": "live", "input": [', "]}"),
        ("/embed", '{"inputs": [', "]}"),
        ("/v1/rerank", '{"query": "q", "documents": [', "]}"),
        ("/v1/search", '{"task": "qa", "query": [', "]}"),
        ("/v1/search", '{"task": "qa", "query": "q", "filter": {"must": [', "]}}"),
        (f"/v1/indexes/{ALIAS}/documents", '{"task": "qa", "documents": [', "]}"),
        (f"/v1/indexes/{ALIAS}/documents/delete", '{"task": "qa", "documents": [', "]}"),
    ]
    every = [(path, _filled(before, piece, after)) for path, before, after in ends for piece in pieces]
    large = [(path, _filled(before, "{}", after, 7 * MIB)) for path, before, after in ends[:2]]
    return post(target, every + large)


def deep_json(target: Target) -> Counter[str]:
    """Nested brackets, a million keys, numbers of a million digits, and what is no JSON."""
    depth = 400_000
    filters: object = {"key": "a", "match": {"value": 1}}
    for _ in range(200):
        filters = {"must": [filters]}
    bodies = [
        '{"input": ' + "[" * depth + "]" * depth + "}",
        '{"input": ' + '{"a":' * depth + "1" + "}" * depth + "}",
        "{" + ",".join(f'"k{number}": 1' for number in range(80_000)) + "}",
        '{"input": ' + "9" * MIB + "}",
        '{"input": "\\ud800"}',
        "[" * MIB,
        '"' + "a" * MIB,
        "NaN",
    ]
    requests = [(path, body) for path in ("/v1/embeddings", "/v1/search") for body in bodies]
    return post(target, [*requests, ("/v1/search", json.dumps({"task": TASK, "query": "q", "filter": filters}))])


def _words(random_: random.Random, characters: int) -> str:
    """Distinct words, each of which costs a search by words of its own."""
    return " ".join(f"w{random_.randrange(10**9)}" for _ in range(characters // 11))


def lexical_searches(target: Target) -> Counter[str]:
    """Fault 8.3: 64 queries of 65,000 characters, by words, with fresh documents."""
    random_ = random.Random(0)
    fresh = [{"id": f"attack-{number}", "text": _words(random_, 2000)} for number in range(FRESH)]
    queries = [_words(random_, 65_000) for _ in range(64)]
    write = json.dumps({"task": TASK, "documents": fresh})
    search = json.dumps({"task": TASK, "query": queries, "mode": "lexical", "k": 100})
    hybrid = json.dumps({"task": TASK, "query": queries[:8], "mode": "hybrid", "k": 100})
    return post(target, [(f"/v1/indexes/{ALIAS}/documents", write), ("/v1/search", search), ("/v1/search", hybrid)])


def large_answers(target: Target) -> Counter[str]:
    """Fault 8.7: documents with a title of 4 MiB, asked for again and again by 64 queries at a time."""
    path = f"/v1/indexes/{ALIAS}/documents"
    writes = [
        (path, json.dumps({"task": TASK, "documents": [{"id": f"attack-{name}", "text": "giant", name: value}]}))
        for name, value in TITLED
    ]
    search = json.dumps({"task": TASK, "query": ["giant"] * 64, "mode": "lexical", "k": 100})
    return post(target, [*writes, ("/v1/search", search), ("/v1/retrieve/qa", json.dumps({"query": "giant"}))])


def costly_filters(target: Target) -> Counter[str]:
    """Fault 8.8: filters of as many conditions as are allowed."""
    ranges = [{"key": "number", "range": {"gte": number, "lt": number + 0.5}} for number in range(255)]
    values = [{"key": "dataset", "match": {"any": [f"v{number}-{i}" for i in range(60)]}} for number in range(16)]
    filters = [{"should": ranges}, {"must_not": ranges}, {"should": values}, {"must": [{"should": ranges[:100]}]}]
    bodies = [json.dumps({"task": TASK, "query": ["q"] * 64, "filter": each, "k": 100}) for each in filters]
    return post(target, [("/v1/search", body) for body in islice(cycle(bodies), HEAVY)])


def long_texts(target: Target) -> Counter[str]:
    """Fault 8.12: 127 texts of 65,000 characters, of which the encoder reads 256 tokens each."""
    body = json.dumps({"model": "live", "input": ["word " * 13_000] * 120})
    rerank = json.dumps({"query": "q", "documents": ["word " * 13_000] * 120})
    return post(target, [("/v1/embeddings", body), ("/v1/rerank", rerank), ("/embed", body.replace("input", "inputs"))])


def many_texts(target: Target) -> Counter[str]:
    """As many short texts as are allowed, again and again."""
    body = json.dumps({"model": "live", "input": [f"text {number}" for number in range(2048)]})
    return post(target, [("/v1/embeddings", body)] * 2)


def unknown_names(target: Target) -> Counter[str]:
    """Paths, indexes, models, tasks and keys that do not exist, each once: labels and caches must not keep them."""

    def requests() -> Iterator[tuple[str, str]]:
        for number in range(500):
            yield f"/v1/retrieve/none-{number}", '{"query": "q"}'
            yield f"/v1/indexes/none-{number}/documents", '{"task": "qa", "documents": []}'
            yield f"/no/such/path-{number}", "{}"
            yield "/v1/embeddings", json.dumps({"model": f"none-{number}", "input": "a"})

    return post(target, requests())


BODIES: dict[str, Attack] = {
    attack.__name__: attack
    for attack in (
        wrong_lists,
        deep_json,
        lexical_searches,
        large_answers,
        costly_filters,
        long_texts,
        many_texts,
        unknown_names,
    )
}
