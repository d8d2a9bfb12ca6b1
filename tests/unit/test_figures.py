"""Figures of README and docs: none can be changed, and none can stand outside of a block, without being found."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from benchmarks.figure_blocks import BLOCKS
from benchmarks.figures import BLOCK, CHOSEN, NO_PROSE, NUMBER, ROOT, faults, numbers, pages, printed
from embedder.errors import DataError

TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in pages(ROOT)}
LISTED = CHOSEN.read_text(encoding="utf-8").splitlines()


def faults_of(page: str, text: str) -> list[str]:
    return list(faults({page: text}, [line for line in LISTED if line.startswith(f"{page}: ")], BLOCKS))


def with_other_digits(text: str, begin: int, end: int) -> Iterator[str]:
    """The text with another digit in the place of each within a span."""
    for at in range(begin, end):
        if text[at].isdigit():
            yield f"{text[:at]}{(int(text[at]) + 1) % 10}{text[at + 1 :]}"


def test_every_figure_is_printed_from_a_stored_run_and_every_other_number_is_listed():
    assert list(faults(TEXTS, LISTED, BLOCKS)) == []
    assert sum(len(BLOCK.findall(text)) for text in TEXTS.values()) >= 2


@pytest.mark.parametrize("page", [page for page, text in TEXTS.items() if BLOCK.search(text)])
def test_any_digit_that_changes_in_a_block_is_found(page):
    text = TEXTS[page]
    for block in BLOCK.finditer(text):
        changed = list(with_other_digits(text, block.start(3), block.end(3)))
        assert changed
        for each in changed:
            assert any("is not what the stored run says" in fault for fault in faults_of(page, each))


@pytest.mark.parametrize("page", [page for page, text in TEXTS.items() if numbers(text)])
def test_any_number_that_changes_outside_of_a_block_is_found(page):
    text = TEXTS[page]
    # Blank where there is no prose, so that places stay those of the page.
    prose = NO_PROSE.sub(
        lambda found: "\x00" * len(found.group()), BLOCK.sub(lambda found: "\x00" * len(found.group()), text)
    )
    count = 0
    for found in NUMBER.finditer(prose):
        for each in with_other_digits(text, found.start(2), found.end(2)):
            assert any("no stored run prints this number" in fault for fault in faults_of(page, each)), found.group()
            count += 1
    assert count


@pytest.mark.parametrize(
    "measured",
    [
        "It takes 12 s.",
        "That is 1.5 times as fast.",
        "nDCG is 0.93 then.",
        "7 of 256 rewards differ",
        "61 %",
        "9 pairs/s",
    ],
)
def test_measured_value_in_prose_is_found(measured):
    (fault,) = faults({"docs/a.md": f"# A page\n\n{measured}\n"}, [], {})
    assert "measured, it belongs into a block of figures" in fault


def test_code_links_comments_and_plain_counts_are_no_figures():
    text = "Take `lr: 0.5` and [it](a.md#0.5) of 3 workers <!-- 5 s -->\n\n```sh\nsleep 5 s\n```\n\ntorch 2.13.0\n"
    assert numbers(text) == []


def test_number_that_stands_nowhere_any_more_leaves_the_list():
    (fault,) = faults({"docs/a.md": "none"}, ["docs/a.md: waits for 5 s"], {})
    assert "stands nowhere now" in fault


def test_block_that_nothing_prints_is_refused():
    with pytest.raises(DataError, match="nothing prints figures 'none'"):
        printed("<!-- figures: none -->\n<!-- end of figures -->", "docs/a.md", BLOCKS)


def test_blocks_are_printed_from_what_they_are_given():
    text = "<!-- figures: a -->\nold\n<!-- end of figures -->\n"
    assert re.search(r"-->\n\nnew 5 s\n\n<!-- end", printed(text, "docs/a.md", {"a": lambda: ["new 5 s"]}))
