"""Files of lines, read as bytes: each line is text, or the reason why it cannot be; and the JSON object of a line."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from embedder.data.fields import Row, RowError
from embedder.errors import DataError

MAX_LINE_BYTES = 16 * 2**20
"""A longer line is rejected and never held in memory."""
MAX_NESTING = 64
"""Levels of lists and objects in one row; deeper ones would exhaust the stack of whatever walks them later."""
KEPT_BYTES = 8000
"""Bytes that are kept of a line that is no text."""
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
JSON_TEXT = re.compile(r'"(?:[^"\\]|\\.)*"')
BRACKET = re.compile(r"[\[\]{}]")
WIDE = (b"\xff\xfe", b"\xfe\xff", b"{\0", b"\0{", b"[\0", b"\0[", b'"\0', b'\0"')
"""How files begin that hold two or four bytes a character: by a mark, or by a JSON sign beside an empty byte."""


@dataclass(frozen=True)
class Line:
    """One line of a file that is not blank."""

    number: int
    text: str
    """Without its end; of a line that is no text its readable beginning."""
    fault: str | None = None
    """The reason why it is no text, or None."""


def read_text_lines(path: Path) -> Iterator[Line]:
    """The lines of a file that are not blank, with their numbers from 1.

    The end of a line is LF, CR LF or CR. Byte order marks at its beginning are nothing: files that were joined have
    several. A file whose name ends in `.gz` is compressed.

    Raises:
        DataError: a compressed file is damaged, or the file is in UTF-16 or UTF-32.
    """
    number = 0
    with _opened(path) as file:
        try:
            for raw in _bounded_lines(file):
                if number == 0 and raw.startswith(WIDE):
                    raise DataError(f"{path}: is not UTF-8 but UTF-16 or UTF-32; save it as UTF-8")
                # A line that was cut stays one line, so that what was skipped of it is not taken for nothing.
                for part in [raw] if _too_long(raw) else raw.splitlines():
                    number += 1
                    line = _line(number, part)
                    if line.fault or line.text:
                        yield line
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise DataError(f"{path}:{number + 1}: not readable ({error}); copy the file again") from error


def read_json(path: Path) -> object:
    """The value of a small JSON file.

    Raises:
        DataError: the file is not UTF-8 or not JSON.
    """
    try:
        return parse_json(path.read_bytes().removeprefix(BYTE_ORDER_MARK).decode())
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: {_not_utf8(error)}; save it as UTF-8") from error
    except RowError as error:
        raise DataError(f"{path}: {error}") from error


def parse_json(text: str) -> object:
    """The value of a JSON text.

    Raises:
        RowError: it is no JSON, has a field twice, is nested too deeply, or holds a text that is no Unicode.
    """
    try:
        if _nesting(text) > MAX_NESTING:
            raise RowError(f"nested more than {MAX_NESTING} levels deep")
        value = json.loads(text, object_pairs_hook=_object)
        if "\\u" in text:
            # A lone surrogate is valid JSON but no text that could be hashed or written; only an escape makes one.
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise RowError("a text holds half of a character (a lone surrogate)") from error
    except (ValueError, RecursionError) as error:
        raise RowError(f"not JSON: {error}") from error
    return value


def parse_object(line: str) -> Row:
    """The JSON object of a line.

    Raises:
        RowError: it is no JSON, no object, nested too deeply, or holds a text that is no Unicode.
    """
    if line.strip() in {"[", "{"}:
        raise RowError("a JSON value over several lines; write one object a line (JSON Lines)")
    row = parse_json(line)
    if not isinstance(row, dict):
        raise RowError(f"a {type(row).__name__}, not an object")
    return row


def _opened(path: Path) -> IO[bytes]:
    return cast("IO[bytes]", gzip.open(path, "rb")) if path.suffix == ".gz" else path.open("rb")


def _bounded_lines(file: IO[bytes]) -> Iterator[bytes]:
    """Lines with their ends; a line that is too long is cut behind its first byte too many, and its rest is skipped."""
    while line := file.readline(MAX_LINE_BYTES + 1):
        yield line
        while _too_long(line):
            line = file.readline(MAX_LINE_BYTES + 1)


def _too_long(raw: bytes) -> bool:
    return len(raw) > MAX_LINE_BYTES and not raw.endswith(b"\n")


def _line(number: int, raw: bytes) -> Line:
    if _too_long(raw):
        return Line(number, _readable(raw), f"a line of more than {MAX_LINE_BYTES:,} bytes")
    try:
        text = raw.decode().lstrip("\ufeff")
    except UnicodeDecodeError as error:
        return Line(number, _readable(raw), f"{_not_utf8(error)}; save the file as UTF-8")
    # Tabs at the ends of another line stay, because a table may have an empty first or last column.
    return Line(number, text if text.strip() else "")


def _readable(raw: bytes) -> str:
    return raw[:KEPT_BYTES].decode(errors="backslashreplace")


def _not_utf8(error: UnicodeDecodeError) -> str:
    return f"byte {error.start + 1} ({error.object[error.start]:#04x}) is not UTF-8"


def _nesting(text: str) -> int:
    """Levels of lists and objects; 0 where there are too few brackets for it to matter."""
    if text.count("[") + text.count("{") <= MAX_NESTING:
        return 0
    depth = deepest = 0
    for bracket in BRACKET.findall(JSON_TEXT.sub("", text)):
        depth += 1 if bracket in "[{" else -1
        deepest = max(deepest, depth)
    return deepest


def _object(pairs: list[tuple[str, Any]]) -> Row:
    row = dict(pairs)
    if len(row) < len(pairs):
        # The library would keep the last one without a word.
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise RowError(f"the field {twice!r:.200} stands twice")
    return row
