"""Finds the worked examples of a corpus that are the queries themselves, where a task declares that there may be such,
and the answer that an example gives.

The text decides: an example is a query's own if it is the query, or the query followed by one of its answers. An
example of the query's id may have other words around both ("Input: ... Label: ..."). An equal id alone says nothing.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, MutableMapping

from embedder.data.fields import Row


def link_examples(queries: Iterable[Row], passages: MutableMapping[str, Row]) -> None:
    """Fill in `example_ids` of queries, and the `answer` of examples that have none."""
    by_text: dict[str, list[str]] = {}
    for passage_id, passage in passages.items():
        by_text.setdefault(spaced(passage["text"]), []).append(passage_id)
    for query in queries:
        text, answers = spaced(query["query"]), [spaced(answer) for answer in query["answers"]]
        wanted = dict.fromkeys([text, *(f"{text} {answer}" for answer in answers)])
        found = [passage_id for each in wanted for passage_id in by_text.get(each, ())]
        named = passages.get(query["query_id"])
        if named is not None and query["query_id"] not in found and _works_out(spaced(named["text"]), text, answers):
            found.append(query["query_id"])
        query["example_ids"] = found
        for passage_id in found:
            if passages[passage_id]["answer"] is None and query["answers"]:
                passages[passage_id] = {**passages[passage_id], "answer": query["answers"][0]}


class KnownAnswers:
    """The answers of a dataset's queries, with which its worked examples end."""

    def __init__(self, answers: Iterable[str]) -> None:
        self._answers = {spaced(answer) for answer in answers} - {""}
        self._most_words = max((answer.count(" ") + 1 for answer in self._answers), default=0)

    def ending(self, example: str) -> str | None:
        """The longest of the answers that an example ends with as whole words, behind others; null if none."""
        words = spaced(example).split(" ")
        for start in range(max(1, len(words) - self._most_words), len(words)):
            ending = " ".join(words[start:])
            if ending in self._answers:
                return ending
        return None


def _works_out(example: str, query: str, answers: list[str]) -> bool:
    """True if an example holds a query as whole words and one of its answers behind it."""
    # The last place of an answer, found once: long texts hold short queries very often.
    last = max((example.rfind(answer) for answer in answers), default=-1)
    start = example.find(query)
    while start >= 0:
        end = start + len(query)
        if end > last:
            return False
        before = example[start - 1 : start] if start else ""
        if not before.isalnum() and not example[end : end + 1].isalnum():
            return True
        start = example.find(query, start + 1)
    return False


def spaced(text: str) -> str:
    """The words of a text with single spaces between them, in one form of each accent."""
    return " ".join(unicodedata.normalize("NFC", text).split())
