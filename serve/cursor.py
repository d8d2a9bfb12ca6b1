"""The cursor of a list of documents: where the next page begins, as a word that says nothing to its client.

It holds the name of the last document shown, so that pages neither repeat nor miss a document that stays, whatever is
written or deleted between them, compacted, or moved to another version.
"""

from __future__ import annotations

import base64
import binascii
import json
import zlib

from embedder.index.documents import DocumentName
from serve.http_errors import ApiError


def to_cursor(name: DocumentName) -> str:
    """The cursor behind a document, given its stored name."""
    content = json.dumps(name).encode()
    return base64.urlsafe_b64encode(zlib.crc32(content).to_bytes(4, "big") + content).decode("ascii")


def from_cursor(cursor: str) -> DocumentName:
    """The name behind which a page begins.

    Raises:
        ApiError: it is no cursor that `to_cursor` gives.
    """
    try:
        raw = base64.b64decode(cursor.encode("ascii"), altchars=b"-_", validate=True)
    except (UnicodeEncodeError, binascii.Error):
        raw = b""
    if raw[:4] != zlib.crc32(raw[4:]).to_bytes(4, "big") or len(raw) <= 4:
        raise _refusal()
    try:
        document_id, dataset = json.loads(raw[4:])
        return str(document_id), str(dataset)
    # A right sum says little of what it is a sum of.
    except (ValueError, TypeError, RecursionError):
        raise _refusal() from None


def _refusal() -> ApiError:
    return ApiError(400, "cursor: not one of an answer of this route; leave it out to begin anew", param="cursor")
