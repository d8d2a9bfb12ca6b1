"""Report pages: safe to open whatever the texts of a corpus are, and their formats of numbers and texts."""

from __future__ import annotations

import re

import pytest
from jinja2 import UndefinedError

from embedder.config.train import TrainConfig
from embedder.evaluation import evaluation_report
from embedder.labelling import label_report
from embedder.reporting.html import PAGES, duration, fixed, one_line, printable, render, share, signed, significant
from embedder.training import training_report
from embedder.training.job import StepMetrics
from tests.unit.evaluated import chat, qa, results, tool
from tests.unit.labelled_rows import COST, EVIL, counted, evil_rows
from tests.unit.parsed_page import Page

SHOWN = "<script>alert(1)</script> \"'> &amp; ?   https://evil.example/x.png"
"""What a reader sees of `EVIL`."""


def labelling():
    return label_report.page(counted(evil_rows()), COST, EVIL)


def training():
    name = EVIL.replace("\ud800", "").replace("\x00", "")
    steps = [StepMetrics(0, {name: 1.0}, 1.0, 1e-5, {name: 1.0}, 0.5, 1)]
    history = [{"steps": 0, "tasks": {name: 0.5}, "mean": 0.5}]
    config = TrainConfig(steps=1, batch_size=4, validation={"share": 0.1}, guard={})
    measured = [{"share": 0.0, "tasks": {name: 0.5}, "mean": 0.5}]
    outcome = {"steps": 1, "validation": {"history": history, "best": 0}, "guard": {"share": 0.0, "measured": measured}}
    return training_report.page(training_report.summarise(steps, {name: 3}, {EVIL: 1}, outcome, config), EVIL)


def evaluation():
    return evaluation_report.page(results(qa(), tool(), chat()), EVIL)


@pytest.mark.parametrize("build", [labelling, training, evaluation])
def test_report_page_is_inert_and_loads_nothing(build):
    text = build().encode().decode()
    parsed = Page.of(text)
    assert text.startswith("<!doctype html>")
    assert "<script" not in text.lower()
    assert not {"script", "link", "iframe", "object", "base", "form"} & set(parsed.tags)
    assert not [name for name, _ in parsed.attributes if name.startswith("on")]
    assert [value for value in parsed.values("content") if value.startswith("default-src 'none'; ")]
    pictures = parsed.values("src", "srcset")
    assert pictures and all(value.startswith("data:image/png;base64,") for value in pictures)
    assert not re.search(r"url\(|@import", text)
    assert SHOWN in parsed.text
    assert "\x00" not in parsed.text


@pytest.mark.parametrize("build", [labelling, training, evaluation])
def test_report_page_has_a_target_for_every_link(build):
    parsed = Page.of(build())
    anchors, links = parsed.values("id"), parsed.values("href")
    assert len(anchors) == len(set(anchors))
    assert links and set(links) <= {f"#{anchor}" for anchor in anchors}


def test_label_page_shows_texts_of_the_corpus_as_they_are():
    assert Page.of(labelling()).text.count(SHOWN) > 10


def test_render_escapes_every_value_and_refuses_a_missing_one():
    template = PAGES.from_string("<p title='{{ text }}'>{{ text }}</p>")
    assert template.render(text="<'\">&") == "<p title='&lt;&#39;&#34;&gt;&amp;'>&lt;&#39;&#34;&gt;&amp;</p>"
    with pytest.raises(UndefinedError):
        render("training.html", run="run")


def test_printable_text_is_cut_and_has_neither_surrogates_nor_control_characters():
    assert printable("a\ud800\x00\u2028b\n\tc") == "a?  b\n\tc"
    assert printable("abcd", 3) == "abc…"
    assert printable("abc", 3) == "abc"


def test_one_line_has_no_line_breaks():
    assert one_line(" a\n\n b\tc ", 4) == "a b "
    assert one_line(" \n", 9) == "–"


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (share(None), "–"),
        (share(0.666), "66.6%"),
        (fixed(None, 2), "–"),
        (fixed(-1234.5, 2), "−1,234.50"),
        (fixed(0.5, 3, "+"), "+0.500"),
        (signed(None, 3), "–"),
        (signed(1.5, 3), "+1.5"),
        (signed(-20.0, 3), "−20"),
        (signed(0.0, 3), "0"),
        (signed(-0.0001, 3), "0"),
        (significant(1234.6), "1,235"),
        (significant(0.012345), "0.0123"),
        (duration(59.04), "59.0 s"),
        (duration(3725), "1:02:05 h"),
    ],
)
def test_number_formats(shown, expected):
    assert shown == expected
