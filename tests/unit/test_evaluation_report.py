"""The report of an evaluation: one page that loads nothing, with every text escaped, beside numbers and a picture."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest
from rich.console import Console

from embedder.evaluation.evaluation_page import page
from embedder.evaluation.evaluation_report import results_table, write_report
from embedder.evaluation.evaluations import EVALUATIONS
from embedder.evaluation.measurements import DatasetValues
from tests.unit.evaluated import chat, qa, results, row, tool


class Tags(HTMLParser):
    """The tags of a page with their attributes, and its texts."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


@pytest.fixture(scope="module")
def found():
    return results(qa(), tool(), chat())


@pytest.fixture(scope="module")
def read(found):
    return Tags(page(found, "my run"))


def test_all_three_files_are_written(found, tmp_path):
    path = write_report(found, tmp_path / "evaluation" / "test", "my run")
    assert path.name == "report.html"
    assert json.loads((path.parent / "results.json").read_text(encoding="utf-8")) == json.loads(json.dumps(found))
    assert (path.parent / "comparison.png").read_bytes().startswith(b"\x89PNG")
    assert [one.name for one in path.parent.iterdir() if one.name.startswith(".")] == []


def test_the_page_loads_nothing_and_runs_nothing(read):
    assert not {tag for tag, _ in read.tags} & {"script", "link", "iframe", "object", "form"}
    policy = next(attrs["content"] for tag, attrs in read.tags if attrs.get("http-equiv"))
    assert policy.startswith("default-src 'none'")
    links = [value for _, attrs in read.tags for name, value in attrs.items() if name in {"href", "src", "srcset"}]
    assert links and all(link.startswith(("#", "data:image/png;base64,")) for link in links)


def test_every_link_of_the_contents_leads_somewhere(read):
    ids = {attrs["id"] for _, attrs in read.tags if "id" in attrs}
    assert {attrs["href"][1:] for tag, attrs in read.tags if tag == "a"} <= ids


def test_texts_of_the_data_are_shown_as_they_are(read):
    assert "<script>alert('x')</script> &" in read.text
    assert "\x00" not in read.text


def test_tables_hold_values_intervals_and_differences(read, found):
    entry = found["datasets"]["tool-set"]["measures"]["nDCG@5"]
    for number in (entry["retrievers"]["trained"]["value"], entry["retrievers"]["base"]["low"]):
        assert f"{number:.3f}" in read.text
    assert re.search(r"p = 0\.\d{4}", read.text)
    assert "perplexity \N{DOWNWARDS ARROW}" in read.text
    assert "from 2 documents or conversations" in read.text
    assert "1 could not be asked and count for no retriever" in read.text


def test_examples_show_what_was_found_and_written(read):
    assert "trained better:" in read.text and "trained worse:" in read.text
    assert "The LLM wrote: the answer 0" in read.text
    assert "relevant" in read.text


def test_the_method_is_told(read):
    assert "bootstrap" in read.text and "randomisation test" in read.text and "200 resamples" in read.text


def test_a_page_without_any_number_says_so():
    text = Tags(page(results(DatasetValues("x", "lrlm", EVALUATIONS["lrlm"], [row("lrlm", 0)])), "run")).text
    assert "Nothing could be measured" in text and "Nothing was measured" in text


def test_the_console_shows_the_headline_first(found):
    out = Console(width=200, record=True, file=open("/dev/null", "w", encoding="utf-8"))  # noqa: SIM115
    out.print(results_table(found))
    text = out.export_text()
    lines = [line for line in text.splitlines() if "qa-set" in line]
    assert "exact match" in lines[0] and "0.500" in lines[0] and "1.000" in lines[0]
