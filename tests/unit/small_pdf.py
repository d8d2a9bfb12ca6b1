"""Writes small PDF files by hand: lines of text on pages, an outline, a password."""

from __future__ import annotations

import zlib
from collections.abc import Sequence


def small_pdf(pages: Sequence[Sequence[str]], outline: Sequence[tuple[str, int]] = (), locked: bool = False) -> bytes:
    """Pages of lines; `outline` holds titles with the page, from 0, on which they stand."""
    streams = []
    for lines in pages:
        shown = b" ".join(b"(%s) Tj T*" % line.encode() for line in lines)
        streams.append(b"BT /F 11 Tf 14 TL 50 800 Td " + shown + b" ET")
    return pdf_of_streams(streams, outline, locked)


def pdf_of_streams(streams: Sequence[bytes], outline: Sequence[tuple[str, int]] = (), locked: bool = False) -> bytes:
    """A page for each stream of drawing commands."""
    first, count = 5, len(streams)
    kids = b" ".join(b"%d 0 R" % (first + 2 * i) for i in range(count))
    marks = first + 2 * count
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R /Outlines 4 0 R >>",
        b"<< /Type /Pages /Kids [%s] /Count %d >>" % (kids, count),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
        b"<< /Type /Outlines /First %d 0 R /Last %d 0 R >>" % (marks, marks + len(outline) - 1)
        if outline
        else b"<< >>",
    ]
    for i, stream in enumerate(streams):
        resources = b"/Resources << /Font << /F 3 0 R >> >> /MediaBox [0 0 600 850]"
        objects.append(b"<< /Type /Page /Parent 2 0 R %s /Contents %d 0 R >>" % (resources, first + 2 * i + 1))
        body = zlib.compress(stream)
        head = b"<< /Filter /FlateDecode /Length %d >>" % len(body)
        objects.append(head + b"\nstream\n" + body + b"\nendstream")
    for i, (title, page) in enumerate(outline):
        after = b"/Next %d 0 R" % (marks + i + 1) if i + 1 < len(outline) else b""
        place = b"/Parent 4 0 R /Dest [%d 0 R /Fit] %s" % (first + 2 * page, after)
        objects.append(b"<< /Title (%s) %s >>" % (title.encode(), place))
    trailer = b"/Root 1 0 R"
    if locked:
        key = b"<" + b"5a" * 32 + b">"
        objects.append(b"<< /Filter /Standard /V 1 /R 2 /O %s /U %s /P -4 >>" % (key, key))
        trailer += b" /Encrypt %d 0 R /ID [<00> <00>]" % len(objects)
    return _joined(objects, trailer)


def _joined(objects: Sequence[bytes], trailer: bytes) -> bytes:
    out, places = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        places.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    size = len(objects) + 1
    head = b"xref\n0 %d\n0000000000 65535 f \n" % size
    return out + head + table + b"trailer\n<< /Size %d %s >>\nstartxref\n%d\n%%%%EOF\n" % (size, trailer, len(out))
