"""Write the demo's source data: six tasks for a retriever of a Python coding assistant, from the user's own Python.

    python -m embedder.demo.build --out .cache/demo

Documentation topics, docstrings and source files come from the running interpreter; the questions, conversations,
dialogues, requests and examples beside this file were written by hand, and each names its split. The test rows are
frozen. A row whose gold passage this Python does not have is skipped and counted. The output has the layout that
`prepare` reads.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import sysconfig
from collections import Counter
from pathlib import Path
from pydoc_data.topics import topics
from types import ModuleType
from typing import Any

from embedder.console import console

HERE = Path(__file__).parent
PASSAGE_WORDS = 110
"""Paragraphs of a topic are joined up to this length."""
DOCSTRING_WORDS = 60
SOURCES: dict[str, tuple[str, ...]] = {
    "train": (
        *("base64", "bisect", "cmd", "codeop", "contextlib", "getopt", "heapq", "hmac", "netrc", "pprint"),
        *("reprlib", "sched", "shelve", "stat", "string", "textwrap", "timeit", "weakref", "zipapp"),
    ),
    "test": (
        *("calendar", "colorsys", "copy", "filecmp", "fileinput", "fnmatch", "getpass", "glob", "graphlib"),
        *("linecache", "queue", "shlex", "tabnanny", "trace", "wave"),
    ),
}
"""Standard-library modules whose source text is the long-text task, by split."""

Row = dict[str, Any]


def load(name: str) -> list[Row]:
    """The hand-written rows of one file."""
    return [json.loads(line) for line in (HERE / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def squeeze(text: str) -> str:
    """Runs of whitespace as single spaces."""
    return " ".join(text.split())


def topic_passages() -> dict[str, Row]:
    """Passages of the documentation by text: paragraphs of a topic joined up to PASSAGE_WORDS, each text once."""
    passages: dict[str, Row] = {}
    for topic, text in sorted(topics.items()):
        pieces: list[str] = []
        for paragraph in (squeeze(part) for part in text.split("\n\n")):
            if not paragraph or set(paragraph) <= set("*=-~ "):
                continue
            if pieces and len(pieces[-1].split()) + len(paragraph.split()) <= PASSAGE_WORDS:
                pieces[-1] += " " + paragraph
            else:
                pieces.append(paragraph)
        for number, piece in enumerate(pieces):
            passages.setdefault(piece, {"id": f"{topic}-{number:03d}", "text": piece, "title": topic})
    return passages


def gold_passages(row: Row, passages: list[Row]) -> list[Row]:
    """The passages that hold the evidence of a row; some paragraphs stand under several topics."""
    return [passage for passage in passages if row["evidence"] in passage["text"]]


def documentation_rows(
    rows: list[Row], passages: list[Row], tested: set[str], skipped: Counter[str], name: str
) -> dict[str, list[Row]]:
    """Queries over the documentation with their gold passages; `tested` are those of all test rows."""
    splits: dict[str, list[Row]] = {"train": [], "test": []}
    for row in rows:
        gold = gold_passages(row, passages)
        # Another Python may have joined two paragraphs into one passage: then the test row stays.
        if not gold or (row["split"] == "train" and any(passage["id"] in tested for passage in gold)):
            skipped[name] += 1
            continue
        query = row.get("question") or "\n".join([*row["context"], row["utterance"]])
        answers = row.get("answers") or [row["answer"]]
        ids, texts = [passage["id"] for passage in gold], [passage["text"] for passage in gold]
        fields = {"query_id": row["id"], "query": query, "answers": answers, "pos_ids": ids, "pos": texts}
        splits[row["split"]].append(fields)
    return splits


def docstring(dotted: str) -> str | None:
    """`name(signature): first paragraph of the docstring`, or None where this Python has no such function."""
    module, _, name = dotted.rpartition(".")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        return None
    text = inspect.getdoc(function)
    if not callable(function) or not text:
        return None
    words = squeeze(" ".join(text.split("\n\n")[:2])).split()[:DOCSTRING_WORDS]
    return f"{dotted}: {' '.join(words)}"


def tool_rows(skipped: Counter[str]) -> tuple[list[Row], dict[str, list[Row]]]:
    """Docstrings of all public functions of the modules that a request names, and the requests."""
    requests = load("requests")
    names = {row["function"] for row in requests}
    for module in sorted({name.rpartition(".")[0] for name in names}):
        try:
            loaded = importlib.import_module(module)
        except ImportError:
            continue
        names |= {f"{module}.{name}" for name in dir(loaded) if not name.startswith("_") and _is_own(loaded, name)}
    described = {name: docstring(name) for name in sorted(names)}
    corpus = [{"id": name, "text": text} for name, text in described.items() if text]
    splits: dict[str, list[Row]] = {"train": [], "test": []}
    for row in requests:
        text = described[row["function"]]
        if text is None:
            skipped["tool"] += 1
            continue
        gold = {"pos_ids": [row["function"]], "pos": [text], "answers": [row["function"]]}
        splits[row["split"]].append({"query_id": row["id"], "query": row["request"], **gold})
    return corpus, splits


def _is_own(module: ModuleType, name: str) -> bool:
    """True if a public name is a function or class that the module itself defines."""
    # Modules written in C call themselves by a leading underscore: the functions of `bisect` say `_bisect`.
    value = getattr(module, name)
    return callable(value) and getattr(value, "__module__", None) in (module.__name__, f"_{module.__name__}")


def chat_rows() -> dict[str, list[Row]]:
    """Dialogues whose last turn needs an early exchange."""
    splits: dict[str, list[Row]] = {"train": [], "test": []}
    for row in load("dialogues"):
        history = [f"Speaker 1: {turn['user']}\nSpeaker 2: {turn['assistant']}" for turn in row["history"]]
        fields = {"query": row["query"], "answers": [row["reply"]], "history": history, "gold_history": row["gold"]}
        splits[row["split"]].append({"query_id": row["id"], **fields})
    return splits


def example_sets() -> dict[str, tuple[list[Row], dict[str, list[Row]]]]:
    """By set: the pool of worked examples (the training rows with their answer) and the rows."""
    sets: dict[str, tuple[list[Row], dict[str, list[Row]]]] = {}
    for row in load("examples"):
        corpus, splits = sets.setdefault(row["set"], ([], {"train": [], "test": []}))
        query = f"{row['input']} {row['question']}"
        gold = {"answers": [row["label"]], "pos_ids": [], "pos": []}
        splits[row["split"]].append({"query_id": row["id"], "query": query, **gold})
        if row["split"] == "train":
            corpus.append({"id": row["id"], "text": f"{query} {row['label']}"})
    return sets


def source_rows(skipped: Counter[str]) -> dict[str, list[Row]]:
    """Source files of the standard library as long texts."""
    splits: dict[str, list[Row]] = {"train": [], "test": []}
    for split, names in SOURCES.items():
        for name in names:
            path = Path(sysconfig.get_path("stdlib")) / f"{name}.py"
            if not path.is_file():
                skipped["lrlm"] += 1
                continue
            row = {"query_id": f"py-{name}", "title": path.name, "text": path.read_text(encoding="utf-8")}
            splits[split].append(row)
    return splits


def write(folder: Path, corpus: list[Row] | None, splits: dict[str, list[Row]]) -> None:
    """Write a dataset in the layout that `prepare` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in {"corpus": corpus, **splits}.items():
        if rows is not None:
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")


def build(out: Path) -> Counter[str]:
    """Write all datasets; returns how many hand-written rows were skipped, by task."""
    skipped: Counter[str] = Counter()
    passages = list(topic_passages().values())
    questions, conversations = load("questions"), load("conversations")
    tests = [row for row in questions + conversations if row["split"] == "test"]
    # Of both tasks, because one encoder learns both.
    tested = {passage["id"] for row in tests for passage in gold_passages(row, passages)}
    write(out / "qa" / "python-docs", passages, documentation_rows(questions, passages, tested, skipped, "qa"))
    talks = documentation_rows(conversations, passages, tested, skipped, "convsearch")
    named = {passage_id for rows in talks.values() for row in rows for passage_id in row["pos_ids"]}
    topics_named = {passage["title"] for passage in passages if passage["id"] in named}
    nearby = [passage for passage in passages if passage["title"] in topics_named]
    write(out / "convsearch" / "python-talk", nearby, talks)
    corpus, splits = tool_rows(skipped)
    write(out / "tool" / "stdlib", corpus, splits)
    write(out / "chat" / "assistant", None, chat_rows())
    for name, (examples, rows) in example_sets().items():
        write(out / "icl" / name, examples, rows)
    write(out / "lrlm" / "stdlib-source", None, source_rows(skipped))
    return skipped


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write, a folder a task and dataset")
    out = parser.parse_args().out
    skipped = build(out)
    total = sum(len(load(name)) for name in ("questions", "conversations", "dialogues", "requests", "examples"))
    line = f"demo data in {out}: {total} hand-written rows, {skipped.total()} skipped {dict(skipped)}"
    console().print(line, markup=False)


if __name__ == "__main__":
    main()
