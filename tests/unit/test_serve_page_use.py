"""The web page as it is used in a headless Chromium: keys alone, narrow, dark, the largest answer, errors, filters."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import httpx
import pytest

from serve.api import make_api
from tests.browser import CHROMIUM, Tab, browser
from tests.cluster.conftest import free_port
from tests.serving import local_service, publish, run_config, write_reranker
from tests.web_server import answering

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")
QUESTION = "Which function sorts a list?"
FOCUSED = "document.activeElement"
ANSWERED = "document.querySelector('.answer') && !document.querySelector('#answers.busy')"
CONTRAST = """(() => {
  const light = (color) => {
    const [r, g, b] = color.match(/[\\d.]+/g).map((one) => one / 255)
      .map((one) => (one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (one) => {
    const color = getComputedStyle(one).backgroundColor;
    return /, 0\\)$/.test(color) && one.parentElement ? ground(one.parentElement) : color;
  };
  const shown = ["h1", "label", ".title", ".text", ".why", ".times", ".score", "mark", "td", "th", "button"]
    .map((name) => document.querySelector(name));
  return Math.min(...shown.map((one) => {
    const [low, high] = [light(getComputedStyle(one).color), light(ground(one))].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  }));
})()"""
"""The least contrast of text to what is behind it, as WCAG 2 defines it."""


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory, tiny_encoder_folder: Path) -> Iterator[str]:
    """Where an index with a reranker answers, and another one."""
    work = tmp_path_factory.mktemp("used")
    write_reranker(tiny_encoder_folder, work / "trained")
    publish(work, tiny_encoder_folder, "v1", reranker=work / "trained")
    publish(work, tiny_encoder_folder, "v2", alias="base", shards=1)
    api = make_api(local_service(run_config(work, tiny_encoder_folder)), lambda *_: None)
    with answering(api, free_port()) as url:
        yield url


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with browser(tmp_path_factory.mktemp("profile")) as tab:
        yield tab


def search(tab: Tab, url: str, **fragment: str) -> None:
    """Open the page with a search, and wait for what it finds."""
    asked = {"task": "qa", "q": QUESTION, "beside": "", **fragment}
    tab.open(f"{url}/#{urlencode(asked)}")
    tab.until(ANSWERED)


def ids(tab: Tab) -> list[str]:
    found: list[str] = tab.run("[...document.querySelectorAll('.hit')].map((one) => one.dataset.id)")
    return found


def asked(url: str, **body: object) -> list[str]:
    """The same from the service."""
    answer = httpx.post(f"{url}/v1/search", json={"query": QUESTION, "task": "qa", "k": 10, **body}).json()
    return [hit["id"] for hit in answer["results"][0]]


def test_keys_alone_reach_every_field_search_and_move_through_the_hits(tab: Tab, url: str):
    tab.open(f"{url}/")
    tab.until("document.getElementById('health').textContent === 'ready'")
    assert tab.run(f"{FOCUSED}.id") == "query"
    tab.type(QUESTION)
    tab.press("Enter")
    tab.until(ANSWERED)
    assert ids(tab)[:10] == asked(url)
    fields = []
    for _ in range(8):
        tab.press("Tab")
        fields.append(tab.run(f"{FOCUSED}.id || {FOCUSED}.className || {FOCUSED}.type"))
    assert fields == ["submit", "k", "mode", "rerank", "index", "beside", "filter", "hit"]
    tab.press("/")
    assert tab.run(f"{FOCUSED}.id") == "query"
    tab.press("ArrowDown")
    tab.press("ArrowDown")
    assert tab.run(f"{FOCUSED}.dataset.id") == ids(tab)[1]
    tab.press("Enter")
    assert tab.run(f"{FOCUSED}.classList.contains('open')")
    tab.press("ArrowRight")
    assert tab.run(f"{FOCUSED}.closest('.answer').dataset.index") == "base"
    tab.press("Escape")
    assert tab.run(f"{FOCUSED}.id") == "query"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_largest_answer_fits_a_narrow_window_and_can_be_read(tab: Tab, url: str, scheme: str):
    tab.size(360, 740)
    tab.scheme(scheme)
    search(tab, url, k="40", mode="hybrid", beside="base")
    assert len(ids(tab)) == 80
    assert tab.run("document.documentElement.scrollWidth") <= 360
    assert tab.run(CONTRAST) >= 4.5
    ground = tab.run("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (max(ground) < 64) == (scheme == "dark")
    tab.size(1200, 800)


def test_filter_is_conditions_or_json(tab: Tab, url: str):
    few = {"must": [{"key": "number", "range": {"lt": 5}}]}
    for typed in ("number < 5", '{"must": [{"key": "number", "range": {"lt": 5}}]}'):
        search(tab, url, filter=typed)
        assert ids(tab) == asked(url, filter=few)
    search(tab, url, filter="subject = dict, number != 4")
    wanted = {"must": [{"key": "subject", "match": {"value": "dict"}}]}
    wanted["must_not"] = [{"key": "number", "match": {"value": 4}}]
    assert ids(tab) == asked(url, filter=wanted) and len(ids(tab)) == 3


def test_what_is_wrong_is_said(tab: Tab, url: str):
    for fragment, said in (
        ({"k": "101"}, "400: k 101: at most 100"),
        ({"filter": "number is 5"}, 'The filter "number is 5" is not like: year >= 2020'),
        ({"filter": "{"}, "The filter is no JSON."),
        ({"rerank": "5", "k": "5", "index": "base"}, "the index has no reranker"),
    ):
        tab.open(f"{url}/#{urlencode({'task': 'qa', 'q': QUESTION, 'beside': '', **fragment})}")
        tab.until("!document.getElementById('problem').hidden")
        assert said in tab.run("document.getElementById('problem').textContent")


def test_hit_says_where_it_stands_by_vectors_by_words_and_before_the_reranker(tab: Tab, url: str):
    search(tab, url, k="3", mode="hybrid", rerank="8")
    assert ids(tab) == asked(url, k=3, mode="hybrid", rerank_from=8)
    rankings = {mode: asked(url, k=8, mode=mode) for mode in ("dense", "lexical", "hybrid")}
    told = tab.run("[...document.querySelectorAll('.why')].map((one) => one.textContent)")
    for hit, line in zip(ids(tab), told, strict=True):
        for mode, ranking in rankings.items():
            wanted = f"rank {ranking.index(hit) + 1}," if hit in ranking else f"not in its first {len(ranking)}"
            assert f"{mode}: {wanted}" in line
    assert "rerank" in tab.run("document.querySelector('.times').textContent")


def test_page_shows_load_replicas_and_a_task_that_has_documents(tab: Tab, url: str):
    tab.open(f"{url}/")
    tab.until("!document.getElementById('load').hidden")
    assert "0 texts wait" in tab.run("document.getElementById('load').textContent")
    assert tab.run("document.querySelector('#replicas').textContent").startswith("service")
    task = tab.run("document.getElementById('task').value")
    state = httpx.get(f"{url}/v1/indexes").json()["data"][0]
    assert state["collections"][task]["documents"] == 40
