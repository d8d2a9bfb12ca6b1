"""Which files of a folder are read, and as what; what is left out is counted."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from embedder.errors import DataError

Kind = Literal[
    "text", "markdown", "rst", "python", "code", "html", "pdf", "csv", "json_lines", "json", "yaml", "parquet"
]

CODE = (
    "bash c cc clj cmake cpp cs css cxx dart erl ex exs fs go graphql groovy h hh hpp hs java jl js jsx kt kts lua m "
    "mjs ml mm php pl pm proto ps1 r rb rs sass scala scss sh sql swift tcl tf toml ts tsx vb vue zig zsh"
)
SUFFIXES: dict[str, Kind] = {
    **dict.fromkeys((f".{each}" for each in CODE.split()), "code"),
    ".py": "python",
    ".pyi": "python",
    ".txt": "text",
    ".text": "text",
    ".adoc": "text",
    ".asciidoc": "text",
    ".org": "text",
    ".tex": "text",
    ".md": "markdown",
    ".markdown": "markdown",
    ".mdx": "markdown",
    ".rst": "rst",
    ".html": "html",
    ".htm": "html",
    ".xhtml": "html",
    ".pdf": "pdf",
    ".csv": "csv",
    ".tsv": "csv",
    ".jsonl": "json_lines",
    ".ndjson": "json_lines",
    ".parquet": "parquet",
    ".json": "json",
    ".yaml": "yaml",
    ".yml": "yaml",
}
NAMES = ("README", "CHANGES", "CHANGELOG", "NEWS", "COPYING", "LICENSE", "NOTICE", "AUTHORS", "Makefile", "Dockerfile")
"""Files without a suffix that hold text."""
NOT_ENTERED = {"node_modules", "__pycache__", "__MACOSX"}
"""Folders of what nobody wrote; neither are those entered whose names begin with a dot."""
MAX_NAME = 400
"""Characters of a file's path within its folder; the ids of its chunks begin with it."""


@dataclass(frozen=True)
class DocumentFile:
    """One file to read."""

    path: Path
    name: str
    """Its path within the source, with slashes."""
    kind: Kind
    fault: str | None = None
    """Why it is not opened, or None."""


def kind_of_file(path: Path) -> Kind | None:
    """What a file is read as, by its name; None: it is left out."""
    if path.suffix == ".gz":
        inner = kind_of_file(path.with_suffix(""))
        return inner if inner in {"csv", "json_lines"} else None
    return SUFFIXES.get(path.suffix.lower()) or ("text" if path.name in NAMES else None)


def document_files(root: Path, patterns: Sequence[str] | None, left_out: Counter[str]) -> Iterator[DocumentFile]:
    """The files of a folder in the order of their names, or the one file itself.

    `patterns`: only files whose path within the folder fits one of them; `*` stands for any number of signs, slashes
    too. `left_out` counts the files that are of no kind that is read, by their suffixes.

    Raises:
        DataError: there is nothing, or the folder cannot be read.
    """
    if root.is_file():
        yield _document(root, root, kind_of_file(root) or "text")
        return
    if not root.is_dir():
        raise DataError(f"{root}: no such file or folder; correct prepare.sources.path")

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename}: cannot be read ({error.strerror}); give the program the right to")

    for folder, folders, names in os.walk(root, onerror=refuse):
        folders[:] = sorted(each for each in folders if is_entered(Path(each)))
        for linked in (Path(folder, each) for each in folders if Path(folder, each).is_symlink()):
            inside = linked.relative_to(root).as_posix()
            yield DocumentFile(linked, printed_name(inside), "text", "a link to a folder; copy the folder in its place")
        for name in sorted(each for each in names if not each.startswith(".")):
            path = Path(folder, name)
            inside = path.relative_to(root).as_posix()
            kind = kind_of_file(path)
            if patterns is not None and any(fnmatchcase(inside, pattern) for pattern in patterns):
                kind = kind or "text"
            elif patterns is not None or kind is None:
                left_out[path.suffix.lower() or path.name] += 1
                continue
            yield _document(path, root, kind)


def is_entered(folder: Path) -> bool:
    """Whether a folder is looked into, by its name."""
    return not folder.name.startswith(".") and folder.name not in NOT_ENTERED


def _document(path: Path, root: Path, kind: Kind) -> DocumentFile:
    name = path.name if path == root else path.relative_to(root).as_posix()
    return DocumentFile(path, printed_name(name), kind, _fault(path, root, name))


def printed_name(name: str) -> str:
    """A name in which what is not UTF-8 is spelled out."""
    return name.encode(errors="backslashreplace").decode()


def _fault(path: Path, root: Path, name: str) -> str | None:
    """Why a file is not opened."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return "its name is not UTF-8; rename it"
    if len(name) > MAX_NAME:
        return f"its path has {len(name)} characters; at most {MAX_NAME} can be kept"
    try:
        target = path.resolve(strict=True)
        # Of a data set that a hub gave the files are links into its cache, two folders up.
        home = root.parent.parent if root.parent.name == "snapshots" else root
        if path.is_symlink() and not target.is_relative_to(home.resolve()):
            return "a link that leads out of the folder; copy the file into it"
        if not stat.S_ISREG(target.stat().st_mode):
            return "no regular file"
    except (OSError, RuntimeError) as error:
        return f"cannot be opened ({getattr(error, 'strerror', None) or error})"
    return None
