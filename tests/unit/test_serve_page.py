"""The web page: what it is served with, and in a headless Chromium that it shows what /v1/search answers."""

from __future__ import annotations

import html
import json
import re
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient

from serve.access.keys import needed_role
from serve.api import make_api
from serve.routes.page import FOLDER
from tests.browser import CHROMIUM, browser
from tests.cluster.conftest import free_port
from tests.serving import MODEL, local_service, publish, run_config
from tests.web_server import answering

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")
SETTLED = """document.getElementById("health").textContent === "ready" && !document.querySelector("#answers.busy")
  && (document.querySelector(".answer") || !document.getElementById("problem").hidden)"""
HOSTILE = "<img src=x onerror=alert(1)> sorts a list <b>quickly</b>"


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory):
    """The routes over two versions."""
    work = tmp_path_factory.mktemp("page")
    publish(work, MODEL, "v1")
    publish(work, MODEL, "v2", alias="base", shards=1)
    return make_api(local_service(run_config(work, MODEL)), lambda *_: None)


@pytest.fixture(scope="module")
def url(api) -> Iterator[str]:
    """Where a server of this process answers."""
    with answering(api, free_port()) as url:
        yield url


def test_page_is_three_files_under_a_strict_policy(api):
    with TestClient(api) as client:
        for path, kind in [("/", "html"), ("/static/page.css", "css"), ("/static/page.js", "javascript")]:
            answer = client.get(path)
            assert answer.status_code == 200 and answer.headers["content-type"] == f"text/{kind}; charset=utf-8"
            policy = answer.headers["content-security-policy"]
            assert policy.startswith("default-src 'none'; script-src 'self';") and "unsafe" not in policy
            assert answer.headers["x-content-type-options"] == "nosniff"
        assert client.get("/static/other.js").status_code == 400
        assert client.get("/static/..%2Fpage.py").status_code in {400, 404}


def test_page_holds_nothing_from_elsewhere_nothing_inline_and_never_parses_text_as_html():
    files = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.iterdir()}
    assert files.keys() == {"index.html", "page.css", "page.js"}
    for name, text in files.items():
        assert not re.search(r"https?://|(?<!:)//\w+\.|@import|url\(", text), name
    assert not re.search(r"<script(?![^>]* src=)|<style|\sstyle=|\son\w+=", files["index.html"])
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|new Function", files["page.js"])
    fields = re.findall(r'<(?:input|select) id="(\w+)"', files["index.html"])
    labelled = re.findall(r'<label[^>]*>[^<]*<(?:input|select) id="(\w+)"', files["index.html"])
    assert fields == labelled and len(fields) == 9


def shown(url: str, tmp_path: Path, **fragment: str) -> str:
    """The page after it has run what its fragment asks for."""
    with browser(tmp_path / "profile") as tab:
        tab.open(f"{url}/#{urllib.parse.urlencode(fragment)}")
        tab.until(SETTLED)
        page: str = tab.run("document.documentElement.outerHTML")
    return page


def columns(page: str) -> dict[str, list[str]]:
    """Ids of the hits by index, as they stand on the page."""
    sections = re.split(r'<section class="answer"', page)[1:]
    named = {re.search(r'data-index="(\w+)"', one).group(1): one for one in sections}
    return {name: re.findall(r'<li class="hit"[^>]*data-id="([^"]+)"', one) for name, one in named.items()}


@needs_chromium
def test_page_shows_the_hits_of_both_indexes_and_marks_the_words_of_the_query(url, tmp_path):
    question = "Which function sorts a list?"
    page = shown(url, tmp_path, task="qa", q=question, k="5", mode="hybrid", index="live", beside="base")
    body = {"query": question, "task": "qa", "k": 5, "mode": "hybrid"}
    wanted = {}
    for alias in ("live", "base"):
        answer = httpx.post(f"{url}/v1/search", json=body | {"index": alias}).json()
        wanted[alias] = [hit["id"] for hit in answer["results"][0]]
        for hit in answer["results"][0]:
            assert f">{hit['score']:.4f}</span>" in page
    assert columns(page) == wanted
    assert "<mark>sorts</mark> a <mark>list</mark>" in page and "<mark>function</mark>" in page
    assert re.search(r"encode <b>[\d.]+ ms</b>", page) and re.search(r"network <b>[\d.]+ ms</b>", page)
    assert "<td>service</td><td>healthy</td><td>1 running</td>" in page
    assert json.loads(html.unescape(re.search(r'id="index" data-options="([^"]+)"', page).group(1)))[0][0] == "live"


@needs_chromium
def test_page_shows_documents_as_text_and_says_errors(url, api, tmp_path):
    document = {"id": "hostile", "title": HOSTILE, "text": HOSTILE}
    written = httpx.post(f"{url}/v1/indexes/live/documents", json={"task": "tool", "documents": [document]})
    assert written.status_code == 200
    page = shown(url, tmp_path, task="tool", q="quickly onerror", k="1", mode="lexical", beside="")
    assert columns(page) == {"live": ["hostile"]}
    assert "<img" not in page and "&lt;img src=x" in page and "<mark>onerror</mark>" in page
    page = shown(url, tmp_path, task="tool", q="x", k="101", beside="")
    assert re.search(r'<p id="problem" role="alert">400: k 101: at most 100</p>', page)


def test_page_asks_for_no_key_but_what_it_shows_does():
    assert [needed_role("GET", path) for path in ("/", "/static/page.css", "/static/page.js")] == [None] * 3
    assert needed_role("GET", "/v1/state") == "read"
