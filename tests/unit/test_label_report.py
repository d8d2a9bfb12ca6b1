"""The labelling report: its numbers, its memory, and a page that is safe to open."""

from __future__ import annotations

import base64
import io
import json
import random
import re
from html.parser import HTMLParser
from itertools import combinations

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import image

from embedder.data.records import LABELLED
from embedder.labelling.label_page import page, write_report
from embedder.labelling.label_plots import DARK, LIGHT, draw_task
from embedder.labelling.label_statistics import (
    BARS,
    EXAMPLES,
    RANK_STEP,
    REASONS,
    SCORE_STEP,
    TEXT_CHARACTERS,
    Example,
    Histogram,
    LabelCost,
    LabelStatistics,
    bins_a_bar,
    chance_of_positive,
    printable,
)
from embedder.labelling.rewards import group_rewards

THIRD, SECOND, FIRST = (-3.0, -1.0, -2.0), (-1.5, -1.0, -2.0), (-0.5, -1.0, -2.0)
"""Log-likelihoods that put the desired output there among three."""
COST = LabelCost(seconds=20.0, pairs=50, tokens=4000, flops=3e9, peak_flops=1e9, actors=2)
EVIL = "<script>alert(1)</script> \"'> &amp; \ud800 \x00 https://evil.example/x.png"


def counted(rows, seed=0):
    """Statistics of all of the rows."""
    statistics = LabelStatistics(seed)
    for one in rows:
        statistics.add(one)
    return statistics


def shares_of(rows):
    """Shares by task."""
    return {task: one.shares() for task, one in counted(rows).tasks.items()}


def row(scores, relevance, base=THIRD, **changed):
    """A row whose rewards are those of its log-likelihoods."""
    reward = changed.get("reward", "rank")
    fields = {
        "task": "qa",
        "dataset": "nq",
        "query_id": "q1",
        "query": "when",
        "answers": ["now"],
        "candidate_ids": [f"c{i}" for i in range(len(relevance))],
        "candidate_texts": [f"text {i}" for i in range(len(relevance))],
        "relevance": relevance,
        "row_id": f"{scores}{relevance}{base}",
        "rewards": group_rewards(reward, base, scores),
        "outputs": ["now", *(f"sample {i}" for i in range(len(base) - 1))],
        "base_scores": list(base),
        "scores": [list(values) for values in scores],
        "reward": reward,
        "label_fingerprint": "f",
        "error": None,
    }
    return fields | changed


def unlabelled(relevance=(1, 0), **changed):
    empty = dict.fromkeys(("rewards", "outputs", "base_scores", "scores"))
    return row([THIRD for _ in relevance], list(relevance)) | empty | changed


GROUPS = [
    row([FIRST, THIRD, THIRD], [1, 0, 0]),  # rewards 2 0 0
    row([THIRD, THIRD, THIRD], [1, 0, 0]),  # 0 0 0
    row([FIRST, SECOND], [0, 1], base=FIRST),  # 0 -1
    row([SECOND, SECOND, THIRD], [1, 0, 0]),  # 1 1 0
    row([FIRST, SECOND, THIRD], [0, 0, 0]),  # 2 1 0
    unlabelled(error="no candidates"),
    unlabelled(row_id="none"),
]


def statistics_of(rows, task="qa"):
    return counted(rows).tasks[task]


class Asked(dict):
    """A row that knows which of its columns were read."""

    def __init__(self, row):
        super().__init__(row)
        self.names = set()

    def __getitem__(self, name):
        self.names.add(name)
        return super().__getitem__(name)


def test_only_columns_of_the_schema_are_read():
    rows = [Asked(group) for group in GROUPS]
    statistics_of(rows)
    assert {name for row in rows for name in row.names} <= set(LABELLED.names)


def test_rows_from_a_table_count_as_those_they_were_made_of():
    table = pa.Table.from_pylist(GROUPS, schema=LABELLED)
    assert statistics_of(table.to_pylist()).numbers() == statistics_of(GROUPS).numbers()
    assert statistics_of(table.to_pylist()).examples == statistics_of(GROUPS).examples


def test_shares_are_those_worked_out_by_hand():
    assert shares_of(GROUPS) == {
        "qa": {
            "groups": 7,
            "rewarded": 5,
            "errors": 1,
            "flat": 1 / 5,
            "saturated": 1 / 5,
            "polarised": 2 / 5,  # 2 0 0; and 0 -1, as two candidates always are
            "decided": 3 / 5,
            "positive_is_best": 2 / 3,
            "positive_by_chance": pytest.approx((1 / 3 + 1 / 2 + 2 / 3) / 3, abs=1e-6),
        }
    }


def test_numbers_are_those_worked_out_by_hand():
    numbers = statistics_of(GROUPS).numbers()
    names = ("unrewarded", "ranked", "known", "candidates", "mean_samples", "truncated_candidates")
    assert [numbers[name] for name in names] == [1, 5, 3, 14, 2.0, None]
    assert numbers["error_reasons"] == {"no candidates": 1}
    assert numbers["rank_without"]["counts"] == {"1": 1, "3": 4}
    assert numbers["rank_without"]["mean"] == 13 / 5
    assert numbers["rank_with"]["counts"] == {"1": 3, "2": 4, "3": 7}
    assert numbers["rewards"]["rank"]["positive"]["counts"] == {"-1": 1, "0": 1, "1": 1, "2": 1}
    assert numbers["rewards"]["rank"]["other"]["counts"] == {"0": 7, "1": 2, "2": 1}
    assert numbers["rewards"]["rank"]["positive"]["mean"] == 1 / 2
    assert numbers["rewards"]["rank"]["other"]["mean"] == 4 / 10
    json.dumps(numbers, allow_nan=False)


def test_half_ranks_have_bins_of_their_own():
    numbers = statistics_of([row([(-1.0, -1.0, -2.0)], [0], base=(-2.0, -2.0, -1.0))]).numbers()
    assert numbers["rank_without"]["counts"] == {"2.5": 1}
    assert numbers["rank_with"]["counts"] == {"1.5": 1}
    assert numbers["rewards"]["rank"]["other"]["counts"] == {"1": 1}


def test_truncated_candidates_are_a_share_of_those_of_rows_that_tell():
    rows = [GROUPS[0] | {"truncated": 2}, GROUPS[1] | {"truncated": 0}, GROUPS[2] | {"truncated": None}, GROUPS[3]]
    numbers = statistics_of(rows).numbers()
    assert (numbers["truncated"], numbers["truncated_candidates"]) == (2 / 6, 2)


def test_a_likelihood_reward_has_no_ranks():
    numbers = statistics_of([row([(-1.0,), (-2.5,)], [1, 0], base=(-2.0,), reward="likelihood")]).numbers()
    assert "saturated" not in numbers
    assert (numbers["decided"], numbers["positive_is_best"], numbers["mean_samples"]) == (1, 1, None)
    assert numbers["rewards"]["likelihood"]["positive"]["mean"] == -1
    assert numbers["rank_with"]["counts"] == {}


def test_rewards_of_another_teacher_need_no_log_likelihoods():
    rows = [unlabelled(rewards=[0.25, 70.0]), unlabelled(rewards=[1e9, -1e9]), unlabelled(rewards=[0.5, 0.5])]
    one = statistics_of(rows)
    assert one.shares() == {
        "groups": 3,
        "rewarded": 3,
        "errors": 0,
        "flat": 1 / 3,
        "polarised": 2 / 3,
        "decided": 2 / 3,
        "positive_is_best": 0.5,
        "positive_by_chance": 0.5,
    }
    assert list(one.rewards) == ["teacher"]
    assert Example.of(rows[0]).candidates[1].reward == 70
    assert Example.of(rows[0]).candidates[1].rank is None


def test_a_task_without_rewards_counts_its_groups_alone():
    groups = [unlabelled(task="tool", reward="none")]
    assert shares_of(groups) == {"tool": {"groups": 1, "rewarded": 0, "errors": 0}}
    text = page(counted(groups), None, "run")
    assert "unrewarded: 1" in text
    assert "<img" not in text
    assert "text 1" in text


def test_an_empty_table_gives_an_empty_report(tmp_path):
    write_report(LabelStatistics(), None, tmp_path, "run")
    assert json.loads((tmp_path / "labelling.json").read_text()) == {"cost": None, "tasks": {}}
    assert "no labelled groups" in Page.of((tmp_path / "labelling.html").read_text()).text


def test_tasks_are_in_order_whatever_comes_first():
    assert list(shares_of([GROUPS[0], GROUPS[0] | {"task": "chat"}])) == ["chat", "qa"]


def test_errors_are_counted_by_their_first_words_without_numbers():
    rows = [unlabelled(row_id=str(i), error=f"query {i} has 12 tokens too many for the LLM {i}") for i in range(3)]
    assert statistics_of(rows).numbers()["error_reasons"] == {"query # has # tokens too": 3}


def test_reasons_of_errors_are_bounded_and_none_is_lost():
    words = [f"{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(100)]
    rows = [unlabelled(row_id=f"{word}{i}", error=word) for word in words for i in range(2)]
    random.Random(0).shuffle(rows)
    reasons = statistics_of(rows).numbers()["error_reasons"]
    assert reasons == dict.fromkeys(words[:REASONS], 2) | {"(other)": 2 * (100 - REASONS)}


def test_a_thousand_rows_keep_ten_examples_and_few_bins():
    scores = [[(-0.01 * i, -1.0, -2.0), (-0.02 * i, -1.0, -2.0)] for i in range(1000)]
    one = statistics_of([row(part, [1, 0], row_id=str(i), query="x" * 5000) for i, part in enumerate(scores)])
    assert len(one.examples) == len(one._examples) == EXAMPLES
    assert len(one.rank_with.counts) <= 5
    assert all(len(example.query) == TEXT_CHARACTERS + 1 for example in one.examples)
    assert one.counts["groups"] == 1000


def test_examples_are_drawn_evenly_and_by_the_seed():
    rows = [row([FIRST], [1], row_id=str(i), query_id=str(i)) for i in range(1000)]
    drawn = [[int(e.query_id) for e in counted(rows, seed).tasks["qa"].examples] for seed in range(40)]
    assert len({tuple(ids) for ids in drawn}) == 40
    assert 450 < sum(map(sum, drawn)) / 400 < 550  # 499.5 on average, with a standard deviation of 14


SCORES = st.tuples(*[st.sampled_from([-3.0, -2.0, -1.0]) | st.floats(-9, 0)] * 3)
DRAWN = st.one_of(
    st.builds(
        lambda scores, base, known, cut, task: row(
            scores, [known, *[0] * (len(scores) - 1)], base=base, truncated=cut, task=task
        ),
        st.lists(SCORES, min_size=1, max_size=4),
        SCORES,
        st.integers(0, 1),
        st.none() | st.integers(0, 1),
        st.sampled_from(["qa", "icl"]),
    ),
    st.builds(lambda rewards: unlabelled(rewards=rewards), st.tuples(st.floats(-200, 200), st.floats(-1, 1)).map(list)),
    st.builds(lambda error: unlabelled(error=error), st.none() | st.text(max_size=20)),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(DRAWN, min_size=1, max_size=30), st.randoms(use_true_random=False))
def test_statistics_do_not_depend_on_the_order_of_the_rows(rows, shuffler):
    rows = [row | {"row_id": f"id{i}"} for i, row in enumerate(rows)]
    shuffled = list(rows)
    shuffler.shuffle(shuffled)
    one, other = counted(rows).tasks, counted(shuffled).tasks
    assert {task: of.numbers() for task, of in one.items()} == {task: of.numbers() for task, of in other.items()}
    assert [of.examples for of in one.values()] == [of.examples for of in other.values()]


@given(st.lists(st.floats(-1e4, 1e4), min_size=1), st.sampled_from([RANK_STEP, SCORE_STEP]))
def test_bars_are_few_and_lose_no_value(values, step):
    histogram = Histogram(step)
    for value in values:
        histogram.add(value)
    bars = histogram.bars(bins_a_bar([histogram]))
    assert sum(bars.values()) == len(values)
    assert len(bars) <= BARS + 1
    assert histogram.mean == pytest.approx(sum(values) / len(values), abs=1e-5)


def test_merged_bars_of_ranks_hold_as_many_whole_ranks_each():
    bases = [(-rank + 0.5, *(-float(i) for i in range(1, 64))) for rank in range(1, 65)]
    numbers = statistics_of([row([bases[0]], [1], base=base) for base in bases]).numbers()
    assert numbers["rank_without"]["bar_width"] == 2.0
    assert numbers["rank_without"]["counts"] == {str(rank): 2 for rank in range(1, 65, 2)}


@pytest.mark.parametrize(("candidates", "positives", "chosen"), [(4, 1, 1), (4, 1, 2), (5, 2, 2), (5, 4, 2), (3, 3, 1)])
def test_chance_is_the_share_of_choices_that_hold_a_positive(candidates, positives, chosen):
    choices = list(combinations(range(candidates), chosen))
    expected = sum(min(choice) < positives for choice in choices) / len(choices)
    assert chance_of_positive(candidates, positives, chosen) == pytest.approx(expected)


def test_rates_and_share_of_the_peak():
    assert COST.numbers() | {"pairs_per_s": 2.5, "tokens_per_s": 200.0, "peak_share": 0.075} == COST.numbers()
    nothing = LabelCost(seconds=0, pairs=0, tokens=0, flops=0, peak_flops=1e9, actors=2)
    assert (nothing.pairs_per_s, nothing.tokens_per_s, nothing.peak_share) == (0, 0, None)
    assert LabelCost(1.0, 1, 1, 1.0, None, 1).peak_share is None


def test_an_example_holds_what_one_needs_to_judge_the_reward():
    example = Example.of(row([THIRD, FIRST], [0, 1], query="when", base=SECOND))
    assert (example.desired, example.desired_likelihood, example.desired_rank) == ("now", -1.5, 2)
    assert example.samples == [("sample 0", -1.0), ("sample 1", -2.0)]
    other, known = example.candidates
    assert (other.positive, other.reward, other.rank, other.likelihood, other.text) == (False, -1, 3, -3.0, "text 0")
    assert (known.positive, known.reward, known.rank, known.likelihood) == (True, 1, 1, -0.5)
    assert Example.of(unlabelled(answers=[])).desired is None


def test_printable_text_is_cut_and_has_neither_surrogates_nor_control_characters():
    assert printable("a\ud800\x00\u2028b\n\tc") == "a?  b\n\tc"
    assert printable("abcd", 3) == "abc…"
    assert printable("abc", 3) == "abc"


class Page(HTMLParser):
    """What a page holds: tags with their attributes, ids, and the text in front of the reader."""

    VOID = ("meta", "source", "img")

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.tags, self.attributes, self.open, self.text = [], [], [], ""

    @classmethod
    def of(cls, text):
        parsed = cls()
        parsed.feed(text)
        parsed.close()
        assert parsed.open == []
        return parsed

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        raise AssertionError(f"<{tag} /> is no HTML")

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += "" if self.open[-1:] == ["style"] else data

    def values(self, *names):
        return [value for name, value in self.attributes if name in names]


def evil_rows():
    texts = {"dataset": EVIL, "query_id": EVIL, "query": EVIL, "answers": [EVIL], "candidate_texts": [EVIL, EVIL]}
    rewarded = row([FIRST, THIRD], [1, 0], task=EVIL, **texts) | {"outputs": [EVIL] * 3}
    return [rewarded, unlabelled(task=EVIL, error=EVIL, **texts)]


def test_texts_of_a_corpus_are_inert_and_nothing_is_loaded(tmp_path):
    path = write_report(counted(evil_rows()), COST, tmp_path, EVIL)
    text = path.read_text(encoding="utf-8")
    parsed = Page.of(text)
    assert "<script" not in text.lower()
    assert not {"script", "link", "iframe", "object", "base", "form"} & set(parsed.tags)
    assert not [name for name, _ in parsed.attributes if name.startswith("on")]
    assert all(value.startswith("data:image/png;base64,") for value in parsed.values("src", "srcset"))
    assert all(value.startswith("#") for value in parsed.values("href"))
    assert not re.search(r"url\(|@import", text)
    assert parsed.text.count("<script>alert(1)</script> \"'> &amp; ?   https://evil.example/x.png") > 10
    assert json.loads((tmp_path / "labelling.json").read_text())["cost"]["pairs"] == 50


def test_the_page_has_a_section_a_task_that_its_contents_lead_to():
    rows = [*GROUPS, *(group | {"task": "icl"} for group in GROUPS)]
    parsed = Page.of(page(counted(rows), COST, "first"))
    anchors = parsed.values("id")
    assert len(anchors) == len(set(anchors))
    assert {value.removeprefix("#") for value in parsed.values("href")} <= set(anchors)
    assert {"cost", "tasks", "task-0", "task-1"} <= set(anchors)
    assert parsed.tags.count("details") == 14
    for shown in ("Labels of first", "7.5%", "66.7%", "no candidates", "known positive", "2.5", "−0.500"):
        assert shown in parsed.text
    assert parsed.tags.count("img") == parsed.tags.count("picture") == 2


def test_writing_again_replaces_both_files_and_leaves_no_other(tmp_path):
    folder = tmp_path / "reports"
    write_report(counted(GROUPS[:1]), COST, folder, "first")
    path = write_report(counted(GROUPS), None, folder, "second")
    assert path == folder / "labelling.html"
    assert sorted(file.name for file in folder.iterdir()) == ["labelling.html", "labelling.json"]
    assert "Labels of second" in path.read_text(encoding="utf-8")
    assert json.loads((folder / "labelling.json").read_text())["tasks"]["qa"]["groups"] == 7


def test_a_failed_page_leaves_the_last_report(tmp_path, monkeypatch):
    path = write_report(counted(GROUPS), None, tmp_path, "first")
    before = path.read_bytes()
    monkeypatch.setattr("embedder.labelling.label_page._overview", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_report(counted(GROUPS), None, tmp_path, "second")
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 2


def test_pictures_are_drawn_for_light_and_for_dark():
    light, dark = (
        image.imread(io.BytesIO(base64.b64decode(draw_task(statistics_of(GROUPS), theme)))) for theme in (LIGHT, DARK)
    )
    assert light.shape == dark.shape
    assert light[0, 0, 3] == 0  # a transparent background
    assert light[..., 3].max() == 1
    brightness = [picture[picture[..., 3] == 1][:, :3].mean() for picture in (light, dark)]
    assert brightness[0] < brightness[1]


def test_a_picture_grows_by_a_row_for_a_third_panel():
    two = statistics_of(GROUPS)
    three = statistics_of([*GROUPS, unlabelled(rewards=[0.5, 0.1], row_id="other teacher")])
    shapes = [image.imread(io.BytesIO(base64.b64decode(draw_task(one, LIGHT)))).shape for one in (two, three)]
    assert shapes[1][0] == 2 * shapes[0][0]
    assert shapes[1][1] == shapes[0][1]
