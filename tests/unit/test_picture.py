"""The picture that compares retrievers."""

from __future__ import annotations

from matplotlib import image

from embedder.evaluation.picture import draw_comparison

PANEL = {"nq": {"bm25": 0.5, "base": 0.4, "trained": 0.6}, "pubmed": {"bm25": 0.7, "trained": 0.8}}


def test_a_picture_has_a_panel_for_each_measure_that_has_values(tmp_path):
    draw_comparison({"nDCG@10": PANEL}, tmp_path / "deep" / "one.png")
    draw_comparison({"nDCG@10": PANEL, "likelihood": {"nq": {"none": -2.0}}, "F1": {}}, tmp_path / "two.png")
    one, two = image.imread(tmp_path / "deep" / "one.png"), image.imread(tmp_path / "two.png")
    assert (tmp_path / "two.png").read_bytes().startswith(b"\x89PNG")
    assert two.shape[0] == 2 * one.shape[0]
    assert one.min() < one.max()


def test_without_values_nothing_is_drawn(tmp_path):
    draw_comparison({"nDCG@10": {}}, tmp_path / "none.png")
    assert list(tmp_path.iterdir()) == []
