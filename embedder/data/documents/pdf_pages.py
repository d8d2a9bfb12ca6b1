"""PDF files: the text of their pages in the order in which it stands there, under the headings of their outline."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pypdfium2

from embedder.data.documents.section import DocumentPart, UnreadableError

MAX_PAGES = 20_000
MAX_CHARACTERS = 64 * 2**20
"""Characters of all pages together."""
MAX_OUTLINE = 10_000
"""Entries of an outline that are read, and their depth: entries may name themselves as their own parts."""
MAX_DEPTH = 8
PASSWORD_NEEDED = 4
"""What PDFium calls FPDF_ERR_PASSWORD."""


def pdf_sections(path: Path, name: str) -> Iterator[DocumentPart]:
    """The parts of a PDF by the entries of its outline, with the pages on which they stand.

    Raises:
        UnreadableError: it is encrypted, damaged, too long, or has no text, as scanned pages have none.
    """
    try:
        document = pypdfium2.PdfDocument(path)
    except pypdfium2.PdfiumError as error:
        if getattr(error, "err_code", None) == PASSWORD_NEEDED or "password" in str(error).lower():
            raise UnreadableError("encrypted: it needs a password; save it without one") from error
        raise UnreadableError(f"no readable PDF ({error}); save it again") from error
    try:
        if len(document) > MAX_PAGES:
            raise UnreadableError(f"{len(document):,} pages; at most {MAX_PAGES:,} are read; divide it")
        yield from _sections(document, name)
    finally:
        document.close()


def _sections(document: pypdfium2.PdfDocument, name: str) -> Iterator[DocumentPart]:
    outline = _outline(document)
    headings: tuple[str, ...] = (name,)
    text, pages, found, characters = "", [], False, 0
    for number in range(len(document)):
        page = _page_text(document, number)
        characters += len(page)
        if characters > MAX_CHARACTERS:
            raise UnreadableError(f"more than {MAX_CHARACTERS:,} characters of text; divide it")
        found = found or bool(page.strip())
        pages.append((len(text), number + 1))
        text += page + "\n"
        # A section ends where the next entry's words stand as a line of their page, or else where its page begins.
        for path in outline.get(number, []):
            at = _line_of(path[-1], page)
            cut = len(text) - len(page) - 1 + max(at, 0)
            if text[:cut].strip():
                yield DocumentPart(headings, text[:cut], tuple(each for each in pages if each[0] < cut or not cut))
            headings, text = path, text[cut:]
            page, pages = text[:-1], [(0, number + 1)]
    if text.strip():
        yield DocumentPart(headings, text, tuple(pages))
    if not found:
        raise UnreadableError("no text: its pages are pictures, such as scans; read them by OCR first")


def _page_text(document: pypdfium2.PdfDocument, number: int) -> str:
    try:
        page = document[number]
        words = page.get_textpage()
        text: str = words.get_text_bounded()
        words.close()
        page.close()
    except pypdfium2.PdfiumError as error:
        raise UnreadableError(f"page {number + 1} cannot be read ({error}); save it again") from error
    # A hyphen at the end of a line comes as a sign of its own, and the word goes on behind it.
    text = text.replace("\r\n", "\n").replace("\ufffe\n", "").replace("\ufffe", "").replace("\0", "")
    return text.encode(errors="ignore").decode()


def _outline(document: pypdfium2.PdfDocument) -> dict[int, list[tuple[str, ...]]]:
    """The heading paths that begin on each page, in the order of the outline."""
    found: dict[int, list[tuple[str, ...]]] = {}
    above: list[str] = []
    for count, mark in enumerate(document.get_toc(max_depth=MAX_DEPTH)):
        if count >= MAX_OUTLINE:
            break
        target = mark.get_dest()
        title = " ".join(mark.get_title().split())[:300].encode(errors="ignore").decode()
        del above[mark.level :]
        above.append(title)
        number = target.get_index() if target else None
        if title and number is not None:
            found.setdefault(number, []).append(tuple(each for each in above if each))
    return found


def _line_of(title: str, page: str) -> int:
    """Where the line begins that holds a heading, with its number or without; -1 where there is none."""
    wanted, at = "".join(title.split()).lower(), 0
    for line in page.split("\n"):
        words = "".join(line.split()).lower()
        if words == wanted or (words.endswith(wanted) and len(words) <= len(wanted) + 8):
            return at
        at += len(line) + 1
    return -1
