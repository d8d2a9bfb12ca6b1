"""The figures of README and docs: each is printed from a stored run, and none stands anywhere else.

    python -m benchmarks.figures            checks; `make docs` does it first
    python -m benchmarks.figures --write    prints all blocks of figures anew

A figure is what was measured or calculated. It stands between `<!-- figures: NAME -->` and `<!-- end of figures -->`,
where the function of that name in `figure_blocks` prints it from a file of a run in benchmarks/. Every other number
that has a unit or decimals was chosen by somebody: a limit, a default, a version. `chosen_numbers.txt` lists these with
the two words before them, so that a measured value elsewhere is found, and so is any number that changes.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path

from benchmarks.figure_blocks import BLOCKS
from embedder.console import console, exit_on_error
from embedder.errors import DataError
from embedder.storage.durable import write_durably

ROOT = Path(__file__).parents[1]
CHOSEN = Path(__file__).with_name("chosen_numbers.txt")
WRITTEN_BY_OTHERS = {"configuration.md"}
"""Pages that are made whole from the code."""
BLOCK = re.compile(r"(<!-- figures: ([\w-]+) -->\n)(.*?)(<!-- end of figures -->)", re.DOTALL)
NO_PROSE = re.compile(r"^( *)```.*?^\1```$|`[^`\n]*`|(?<=\])\([^)\n]*\)|<!--.*?-->", re.DOTALL | re.MULTILINE)
"""Code, the targets of links, and comments."""
UNITS = (
    "ms s h min second seconds minute minutes hour hours day days KB MB GB TB KiB MiB GiB TiB FLOP GFLOP TFLOP GFLOPS "
    "TFLOPS nat nats times fold ranks"
)
UNIT = rf"(?: ?%| ?x\b| ?US\$| ?\w+/s\b| \w+ a second\b| (?:{'|'.join(UNITS.split())})\b)"
NUMBER = re.compile(
    r"((?:\S+\s+){0,2})(?<![\w./§-])"
    rf"(\d[\d,]*(?:\.\d+)?{UNIT}|\d[\d,]*\.\d+(?![\w.]*\d)|\d[\d,]* of (?:the )?\d[\d,]*)"
)
"""A number with a unit, with decimals, or as a part of another, and the two words before it."""


def pages(root: Path) -> list[Path]:
    """README and the pages of the manual."""
    manual = sorted((root / "docs").glob("*.md"))
    return [root / "README.md", *(path for path in manual if path.name not in WRITTEN_BY_OTHERS)]


def printed(text: str, page: str, blocks: dict[str, Callable[[], list[str]]]) -> str:
    """The page with its blocks as they are printed now.

    Raises:
        DataError: nothing prints a block of that name.
    """

    def block(found: re.Match[str]) -> str:
        if found[2] not in blocks:
            known = ", ".join(sorted(blocks)) or "no block"
            raise DataError(f"{page}: nothing prints figures {found[2]!r}; benchmarks/figure_blocks.py has {known}")
        # Empty lines, or a table beside a comment is no table to some readers of Markdown.
        return "\n".join([found[1], *blocks[found[2]](), "", found[4]])

    return BLOCK.sub(block, text)


def numbers(text: str) -> list[str]:
    """The numbers of a page's prose outside of blocks, each with the two words before it."""
    prose = NO_PROSE.sub("_", BLOCK.sub("", text))
    return [" ".join(found.group().split()) for found in NUMBER.finditer(prose)]


def faults(texts: dict[str, str], chosen: Sequence[str], blocks: dict[str, Callable[[], list[str]]]) -> Iterator[str]:
    """What is wrong with pages, by name: a line for each difference."""
    standing: Counter[str] = Counter()
    for page, text in texts.items():
        now = printed(text, page, blocks)
        for old, new in zip_longest(text.splitlines(), now.splitlines()):
            if old != new:
                yield f"{page}: {old!r} is not what the stored run says: {new!r}; python -m benchmarks.figures --write"
                break
        standing.update(f"{page}: {number}" for number in numbers(text))
    listed = Counter(chosen)
    for line in (standing - listed).elements():
        yield (
            f"{line!r}: no stored run prints this number; measured, it belongs into a block of figures; chosen by "
            f"somebody, this line belongs into benchmarks/{CHOSEN.name}"
        )
    for line in (listed - standing).elements():
        yield f"benchmarks/{CHOSEN.name}: {line!r} stands nowhere now; remove the line"


def main(arguments: Sequence[str] | None = None) -> None:
    """Check or write; exit status 2 where a figure differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="print all blocks anew")
    options = parser.parse_args(arguments)
    with exit_on_error():
        texts = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in pages(ROOT)}
        if options.write:
            for name, text in texts.items():
                texts[name] = printed(text, name, BLOCKS)
                if texts[name] != text:
                    write_durably(ROOT / name, texts[name].encode())
        found = list(faults(texts, CHOSEN.read_text(encoding="utf-8").splitlines(), BLOCKS))
        for line in found:
            console().print(f"error: {line}", markup=False, soft_wrap=True)
        if found:
            sys.exit(2)


if __name__ == "__main__":
    main()
