"""The example of docs/example.md: pages of a manual without the questions of its FAQ, and these as queries."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest

from benchmarks.documentation import manual_pages, plain, without_questions, write_example
from embedder.errors import DataError

FAQ = """Sessions
========

.. _faq_why_is_it_closed:

Why is my ``Session`` closed?
-----------------------------

A session is closed where its block of code ends, whatever happens there.

::

    an example of code which is indented and therefore is no quote at all

How do I use :meth:`~.Session.merge`?
-------------------------------------

Short.

The given object is looked up by its primary key, and its state is copied over.
"""


def test_questions_of_a_faq_leave_its_page_and_quote_their_answers():
    page = without_questions(FAQ)
    assert page.rows == [
        {
            "query": "Why is my Session closed?",
            "pos": ["A session is closed where its block of code ends, whatever happens there."],
        },
        {
            "query": "How do I use Session.merge?",
            "pos": ["The given object is looked up by its primary key, and its state is copied over."],
        },
    ]
    assert "Answer 1\n--------\n\nA session is closed" in page.text and "Answer 2\n--------\n\nShort." in page.text
    assert "closed?" not in page.text and "faq_why" not in page.text and page.text.startswith("Sessions\n========\n")


def test_marked_words_are_read_as_they_are_shown():
    assert (
        plain("Use :ref:`the unit of work <uow>`, ``x`` and `links <http://a>`_") == "Use the unit of work, x and links"
    )


def archive(folder: Path, **pages: str) -> Path:
    path = folder / "package.tar.gz"
    with tarfile.open(path, "w:gz") as file:
        for name, text in pages.items():
            member = tarfile.TarInfo(name.replace("__", "/") + ".rst")
            member.size = len(text)
            file.addfile(member, io.BytesIO(text.encode()))
    return path


def test_pages_of_an_archive_become_a_folder_of_documents_and_one_of_questions(tmp_path):
    found = archive(
        tmp_path,
        p__doc__build__faq__sessions=FAQ,
        p__doc__build__orm__a="Text",
        p__doc__build__changelog__b="b",
        p__c="c",
    )
    assert write_example(found, tmp_path / "out") == (2, 2)
    written = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*"))
    assert written == ["asked/test.jsonl", "manual/faq/sessions.rst", "manual/orm/a.rst"]
    lines = (tmp_path / "out" / "asked" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["query"] for line in lines] == ["Why is my Session closed?", "How do I use Session.merge?"]


def test_archive_without_a_manual_or_with_paths_that_lead_out_is_refused(tmp_path):
    with pytest.raises(DataError, match="holds no page below doc/build"):
        list(manual_pages(archive(tmp_path, **{"p__doc__build__..__..__x": "x"})))
