"""The evaluation report: its files, its page, its picture and the table on the console."""

from __future__ import annotations

import io
import json
import re

import pytest
from matplotlib import image
from rich.console import Console

from embedder.evaluation.evaluation_report import draw_headlines, page, results_table, retriever_colors, write_report
from embedder.evaluation.evaluations import EVALUATIONS
from embedder.evaluation.measurements import DatasetValues
from embedder.reporting.plots import DARK, LIGHT, PAPER
from tests.unit.evaluated import chat, qa, results, row, tool
from tests.unit.parsed_page import Page


def text_of(html):
    return " ".join(Page.of(html).text.split())


@pytest.fixture(scope="module")
def found():
    return results(qa(), tool(), chat())


@pytest.fixture(scope="module")
def read(found):
    return text_of(page(found, "my run"))


def test_evaluation_report_writes_all_three_files(found, tmp_path):
    path = write_report(found, tmp_path / "evaluation" / "test", "my run")
    assert path.name == "report.html"
    assert json.loads((path.parent / "results.json").read_text(encoding="utf-8")) == json.loads(json.dumps(found))
    assert (path.parent / "comparison.png").read_bytes().startswith(b"\x89PNG")
    assert [file.name for file in path.parent.iterdir() if file.name.startswith(".")] == []


def test_evaluation_page_shows_texts_of_the_data_as_they_are(read):
    assert "<script>alert('x')</script> &" in read
    assert "\x00" not in read


def test_evaluation_page_has_tables_of_values_intervals_and_differences(read, found):
    entry = found["datasets"]["tool-set"]["measures"]["nDCG@5"]
    for number in (entry["retrievers"]["trained"]["value"], entry["retrievers"]["base"]["low"]):
        assert f"{number:.3f}" in read
    assert re.search(r"p = 0\.\d{4}", read)
    assert "perplexity \N{DOWNWARDS ARROW}" in read
    assert "from 2 documents or conversations" in read
    assert "1 could not be asked and count for no retriever" in read


def test_evaluation_page_shows_passages_and_replies_of_examples(read):
    assert "trained better:" in read and "trained worse:" in read
    assert "The LLM wrote: the answer 0" in read
    assert "relevant" in read


def test_evaluation_page_says_how_it_was_measured(read):
    assert "bootstrap" in read and "randomisation test" in read and "200 resamples" in read


def test_evaluation_page_without_any_number_says_so():
    text = text_of(page(results(DatasetValues("x", "lrlm", EVALUATIONS["lrlm"], [row("lrlm", 0)])), "run"))
    assert "Nothing could be measured" in text and "Nothing was measured" in text


def test_results_table_shows_the_headline_first(found):
    out = Console(width=200, record=True, file=open("/dev/null", "w", encoding="utf-8"))  # noqa: SIM115
    out.print(results_table(found))
    text = out.export_text()
    lines = [line for line in text.splitlines() if "qa-set" in line]
    assert "exact match" in lines[0] and "0.500" in lines[0] and "1.000" in lines[0]


def test_results_table_of_many_retrievers_fits_a_log_file(found):
    assert len(found["retrievers"]) > 3
    out = io.StringIO()
    Console(width=100, file=out).print(results_table(found))
    lines = out.getvalue().splitlines()
    assert lines[0].split()[:5] == ["dataset", "measure", "n", "base", "trained"]
    assert max(len(line.rstrip()) for line in lines) <= 100 and "…" not in out.getvalue()


def pixels(written):
    return image.imread(io.BytesIO(written))


def test_draw_headlines_has_a_panel_for_each_task():
    one, two = results(tool()), results(tool(), qa(), chat())
    small, large = pixels(draw_headlines(one, PAPER)), pixels(draw_headlines(two, PAPER))
    assert small.shape[1] == large.shape[1]
    assert small.min() < small.max()
    assert (large[..., :3].mean(axis=2) < 0.9).sum() > 2 * (small[..., :3].mean(axis=2) < 0.9).sum()


def test_draw_headlines_differs_by_background():
    found = results(tool())
    light, dark, paper = (pixels(draw_headlines(found, colors)) for colors in (LIGHT, DARK, PAPER))
    assert light[0, 0, 3] == dark[0, 0, 3] == 0
    assert paper[0, 0, 3] == 1
    assert (light != dark).any()


def test_draw_headlines_without_a_measure_is_an_empty_picture():
    assert draw_headlines(results(), PAPER).startswith(b"\x89PNG")


def test_retriever_colors_differ_from_each_other():
    names = ["base", "one", "two", "trained"]
    palette = retriever_colors(names, LIGHT)
    assert len({palette[name] for name in names}) == 4
