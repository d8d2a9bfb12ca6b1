"""Reads files of strangers in a process of its own, so that one that is damaged or made to harm costs only itself.

That process may take so much memory and so long for a part; one that dies or hangs is replaced, and its file is set
aside. The two talk in lines of JSON: a request names a file, answers are its sections, then an end or a fault.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from multiprocessing.connection import wait
from pathlib import Path
from typing import IO, Any

from embedder.data.documents.kinds import DocumentFile, Kind
from embedder.data.documents.section import DocumentPart, UnreadableError, read_bytes, read_text
from embedder.data.documents.table_rows import TableColumns
from embedder.data.fields import RowError
from embedder.errors import DataError

MEMORY_BYTES = 4 * 2**30
"""Address space of the process; what a reader asks beyond it is refused to it."""
SECONDS = 120
"""Between two answers."""
MAX_ANSWER = 256 * 2**20
"""Bytes of one answer."""
PIECE = 2**20


class ReaderProcess:
    """The process that reads; it starts with the first file."""

    def __init__(
        self, columns: TableColumns, encoding: str, seconds: float = SECONDS, memory: int = MEMORY_BYTES
    ) -> None:
        self._options = {"columns": asdict(columns), "encoding": encoding}
        self.seconds, self._memory = seconds, memory
        self._process: subprocess.Popen[bytes] | None = None
        self._buffer = bytearray()

    def __enter__(self) -> ReaderProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def sections(self, file: DocumentFile) -> Iterator[DocumentPart]:
        """The sections of one file.

        Raises:
            UnreadableError: it cannot be read, or not to its end.
        """
        request = {"path": str(file.path), "name": file.name, "kind": file.kind, **self._options}
        finished = False
        try:
            self._send(json.dumps(request).encode() + b"\n")
            while "section" in (answer := self._answer()):
                yield _section(answer["section"])
            finished = True
        finally:
            # Also where nobody wants the rest: what is left in the pipe would be taken for the next file's.
            if not finished:
                self._stop()
        if answer.get("fault"):
            raise UnreadableError(answer["fault"])

    def _send(self, line: bytes) -> None:
        if self._process is not None and self._process.poll() is not None:
            # Killed between two files, by whoever needed memory.
            self._stop()
        if self._process is None:
            # The modules are found as in this process, on a cluster's node in the job's own folder.
            env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(self._memory)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=env,
            )
        self._pipe(self._process.stdin).write(line)
        self._pipe(self._process.stdin).flush()

    def _answer(self) -> dict[str, Any]:
        """The next answer; a process that has died, hangs or answers too much is a fault of its file."""
        assert self._process is not None
        output, searched = self._pipe(self._process.stdout).fileno(), 0
        while (end := self._buffer.find(b"\n", searched)) < 0:
            searched = len(self._buffer)
            if searched > MAX_ANSWER:
                raise UnreadableError(f"a part of more than {MAX_ANSWER:,} bytes")
            # Not select.select(), which takes no descriptor above 1,023: a long-lived process has more files open.
            if not wait([output], self.seconds):
                raise UnreadableError(f"no further part within {self.seconds:g} s; divide it, or leave it out")
            piece = os.read(output, PIECE)
            if not piece:
                status = self._process.wait()
                raise UnreadableError(f"its reader ended with status {status}: it is damaged, or needs too much memory")
            self._buffer += piece
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _stop(self) -> None:
        process, self._process = self._process, None
        self._buffer.clear()
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                self._pipe(pipe).close()

    @staticmethod
    def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
        assert pipe is not None
        return pipe


def _section(fields: dict[str, Any]) -> DocumentPart:
    pages = tuple((begin, page) for begin, page in fields.pop("pages"))
    return DocumentPart(tuple(fields.pop("headings")), pages=pages, **fields)


def read_sections(path: Path, name: str, kind: Kind, columns: TableColumns, encoding: str) -> Iterator[DocumentPart]:
    """The sections of a file of one kind; `name` stands for its title.

    Raises:
        UnreadableError: it cannot be read.
    """
    # Each reader is imported by the first file that needs it, and what comes with it only then.
    from embedder.data.documents import plain_text, table_rows, tool_lists

    if kind == "pdf":
        from embedder.data.documents.pdf_pages import pdf_sections

        yield from pdf_sections(path, name)
    elif kind == "html":
        from embedder.data.documents.web_page import page_sections

        yield from page_sections(read_bytes(path), name, encoding)
    elif kind == "csv":
        yield from table_rows.csv_sections(path, columns, encoding)
    elif kind == "json_lines":
        yield from table_rows.json_line_sections(path, columns)
    elif kind == "parquet":
        yield from table_rows.parquet_sections(path, columns)
    else:
        text = read_text(path, encoding)
        tools = None
        if kind == "json":
            tools = tool_lists.json_sections(text, columns)
        elif kind == "yaml":
            tools = tool_lists.yaml_sections(text)
        of_kind = {
            "markdown": plain_text.markdown_sections,
            "rst": plain_text.rst_sections,
            "python": plain_text.python_sections,
        }
        yield from tools if tools is not None else of_kind.get(kind, plain_text.text_sections)(text, name)


def _answers(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    columns = request["columns"]
    columns = TableColumns(columns["text"] and tuple(columns["text"]), columns["title"], columns["id"])
    try:
        sections = read_sections(Path(request["path"]), request["name"], request["kind"], columns, request["encoding"])
        for section in sections:
            yield {"section": asdict(section)}
    except (UnreadableError, RowError, DataError) as error:
        yield {"fault": str(error)}
    except MemoryError:
        yield {"fault": "it needs too much memory; divide it, or leave it out"}
    # ArithmeticError: a date of Arrow that Python's cannot hold.
    except (OSError, EOFError, LookupError, ValueError, RecursionError, ArithmeticError) as error:
        yield {"fault": f"cannot be read ({type(error).__name__}: {str(error)[:200]})"}
    else:
        yield {"end": True}


def main() -> None:
    """Answer the requests that stand on the input, one a line."""
    memory = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    for line in sys.stdin.buffer:
        for answer in _answers(json.loads(line)):
            sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
