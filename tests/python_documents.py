"""Ten files of each kind of document, made of what every Python brings: its manual, docstrings and modules."""

from __future__ import annotations

import csv
import importlib
import inspect
import json
import pydoc
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics
from types import ModuleType

import pyarrow as pa
import pyarrow.parquet as pq

from tests.unit.small_pdf import small_pdf

TEXTS = ["assert", "break", "class", "continue", "del", "for", "global", "if", "import", "lambda"]
PRINTED = ["nonlocal", "pass", "raise", "return", "try", "while", "with", "yield", "comparisons", "numbers"]
"""Topics of the manual, for text files and for PDF files."""
MARKDOWN = ["bisect", "heapq", "json", "textwrap", "shlex", "fnmatch", "glob", "base64", "copy", "keyword"]
PAGES = ["string", "stat", "sched", "queue", "getpass", "cmd", "netrc", "code", "timeit", "webbrowser"]
SOURCES = [
    "calendar",
    "colorsys",
    "fractions",
    "graphlib",
    "linecache",
    "numbers",
    "operator",
    "quopri",
    "reprlib",
    "struct",
]
TABLES = ["math", "random", "statistics", "itertools", "functools", "shutil", "tempfile", "zlib", "binascii", "hashlib"]
ROWS = [str, list, dict, set, bytes, int, float, tuple, frozenset, bytearray]
COLUMNS = ["os.path", "inspect", "ast", "dis", "tokenize", "gzip", "bz2", "lzma", "secrets", "hmac"]
LINES = 40
"""Lines of a page of a PDF file."""


@dataclass(frozen=True)
class Sought:
    """A text that stands in one file, and where."""

    query: str
    file: str
    heading: str
    page: int | None = None


SOUGHT = [
    Sought("a convenient way to insert debugging assertions into a program", "txt/assert.txt", ""),
    Sought("Find the n smallest elements in a dataset", "md/heapq.md", "heapq > nsmallest"),
    Sought("Prompt for a password, with echo turned off", "html/getpass.html", ""),
    Sought("wraps the execution of a block with methods of a context manager", "pdf/with.pdf", "with", 1),
    Sought("set the first weekday of the calendar to Monday or Sunday", "source/calendar.py", "def setfirstweekday"),
    Sought("Return the greatest common divisor", "csv/math.csv", ""),
    Sought("remove prefix from a string if it is present", "jsonl/str.jsonl", ""),
    Sought("join path components, inserting a slash as needed", "parquet/os.path.parquet", ""),
]


def docstrings(holder: ModuleType | type) -> Iterator[tuple[str, str]]:
    """Name and docstring of what is public in a module or type."""
    for name, value in vars(holder).items():
        if not name.startswith("_") and callable(value) and (told := inspect.getdoc(value)):
            yield name, told


def write_documents(folder: Path) -> None:
    """Ten files of each of eight kinds, each kind in a folder of its own."""
    for kind in ("txt", "md", "html", "pdf", "source", "csv", "jsonl", "parquet"):
        (folder / kind).mkdir(parents=True)
    for name in TEXTS:
        (folder / "txt" / f"{name}.txt").write_text(topics[name], encoding="utf-8")
    for name in PRINTED:
        (folder / "pdf" / f"{name}.pdf").write_bytes(_printed(name))
    for name, module in _modules(MARKDOWN):
        parts = [
            f"# {name}\n\n{inspect.getdoc(module)}\n",
            *(f"## {each}\n\n{told}\n" for each, told in docstrings(module)),
        ]
        (folder / "md" / f"{name}.md").write_text("\n".join(parts), encoding="utf-8")
    for name, module in _modules(PAGES):
        page = pydoc.html.page(name, pydoc.html.document(module))
        (folder / "html" / f"{name}.html").write_text(page, encoding="utf-8")
    for name, module in _modules(SOURCES):
        shutil.copy(str(inspect.getsourcefile(module)), folder / "source" / f"{name}.py")
    _write_tables(folder)


def own_questions() -> list[dict[str, object]]:
    """Rows of a train.jsonl about the Markdown files, which quote the documents."""
    return [
        {"query": f"What is {name}.{function} for?", "pos": [told.splitlines()[0]]}
        for name, module in _modules(MARKDOWN)
        for function, told in docstrings(module)
    ]


def _write_tables(folder: Path) -> None:
    for name, module in _modules(TABLES):
        with (folder / "csv" / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("function", "description"), *docstrings(module)])
    for kind in ROWS:
        rows = [json.dumps({"id": f"{kind.__name__}.{name}", "text": told}) for name, told in docstrings(kind)]
        (folder / "jsonl" / f"{kind.__name__}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    for name, module in _modules(COLUMNS):
        names, texts = zip(*docstrings(module), strict=True)
        pq.write_table(pa.table({"title": names, "text": texts}), folder / "parquet" / f"{name}.parquet")


def _modules(names: list[str]) -> Iterator[tuple[str, ModuleType]]:
    yield from ((name, importlib.import_module(name)) for name in names)


def _printed(topic: str) -> bytes:
    """A topic of the manual as a PDF file, with its name in the outline."""
    signs = str.maketrans({"(": "\\(", ")": "\\)", "\\": "\\\\"})
    lines = [line.encode("ascii", "replace").decode().translate(signs) for line in topics[topic].splitlines()]
    return small_pdf([lines[i : i + LINES] for i in range(0, len(lines), LINES)], [(topic, 0)])
