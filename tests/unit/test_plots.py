"""The picture that compares retrievers."""

from __future__ import annotations

import io

from matplotlib import image

from embedder.evaluation.evaluation_plots import DARK, LIGHT, PAPER, colours, draw_headlines
from tests.unit.evaluated import chat, qa, results, tool


def pixels(written):
    return image.imread(io.BytesIO(written))


def test_a_picture_has_a_panel_for_each_task():
    one, two = results(tool()), results(tool(), qa(), chat())
    small, large = pixels(draw_headlines(one, PAPER)), pixels(draw_headlines(two, PAPER))
    assert small.shape[1] == large.shape[1]
    assert small.min() < small.max()
    assert (large[..., :3].mean(axis=2) < 0.9).sum() > 2 * (small[..., :3].mean(axis=2) < 0.9).sum()


def test_a_page_shows_a_picture_for_either_background():
    found = results(tool())
    light, dark, paper = (pixels(draw_headlines(found, theme)) for theme in (LIGHT, DARK, PAPER))
    assert light[0, 0, 3] == dark[0, 0, 3] == 0
    assert paper[0, 0, 3] == 1
    assert (light != dark).any()


def test_nothing_measured_is_an_empty_picture():
    assert draw_headlines(results(), PAPER).startswith(b"\x89PNG")


def test_every_retriever_has_a_colour_of_its_own():
    names = ["base", "one", "two", "trained"]
    palette = colours(names, LIGHT)
    assert len({palette[name] for name in names}) == 4
