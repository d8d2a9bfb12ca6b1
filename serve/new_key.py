"""Make an API key and its line for `serve.api_keys_file`, which holds the hash of the key alone.

    python -m serve.new_key --role read --name search-a --index live --task qa --where tenant=a --expires 2027-01-01
    python -m serve.new_key --role admin --name boss --file keys

The key is printed once and kept nowhere. With `--file` the line is added to the file, which is replaced as a whole;
without, it is printed too.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from uuid import uuid4

from embedder.console import console, exit_on_error
from embedder.errors import ConfigError
from embedder.storage.durable import sync_path
from serve.access.keys import HASHED, ROLES, hashed_key, parsed_file, parsed_line, read_keys


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a new key; exit status 2 and one line for an error the user can fix."""
    options = _parser().parse_args(arguments)
    out = console()
    with exit_on_error():
        key = secrets.token_urlsafe(32)
        line = key_line(options, key)
        if options.file is not None:
            add_line(options.file, line)
    out.print(f"key: {key}", markup=False, highlight=False, soft_wrap=True)
    if options.file is None:
        out.print(f"line: {line}", markup=False, highlight=False, soft_wrap=True)


def key_line(options: argparse.Namespace, key: str) -> str:
    """The line of a key.

    Raises:
        ConfigError: an option is no word, or does not go with the role.
    """
    words = [options.role, f"name={options.name or f'key-{secrets.token_hex(3)}'}"]
    words += [f"index={alias}" for alias in options.index] + [f"task={task}" for task in options.task]
    words += [f"where.{condition}" for condition in options.where]
    words += [f"expires={options.expires}"] if options.expires else []
    line = " ".join([*words, HASHED + hashed_key(key).hex()])
    try:
        # A word with a space in it would be two.
        if len(line.split()) != len(words) + 1:
            raise ValueError("a name, alias, task, field or value has no spaces and is not empty")
        parsed_line(line.split(), 1)
    except ValueError as error:
        raise ConfigError(f"no key was made: {error}") from error
    return line


def add_line(path: Path, line: str) -> None:
    """Add a line to a file of keys, or begin one that its owner alone can read.

    Raises:
        ConfigError: the file holds something else, or a key of that name; or it cannot be replaced.
    """
    path = path.resolve()
    try:
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            # That of the folder, because the file is replaced and another one beside it would stay.
            fcntl.flock(folder, fcntl.LOCK_EX)
            _add_line(path, line)
        finally:
            os.close(folder)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror}); the key is not in it") from error


def _add_line(path: Path, line: str) -> None:
    """The same; no other process may be at it."""
    temporary = path.with_name(f".{uuid4().hex}")
    before, status = "", None
    try:
        if path.exists():
            read_keys(path)
            before, status = path.read_text(encoding="utf-8"), path.stat()
        parsed_file(after := f"{before}{line}\n", str(path))
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(after)
            if status is not None:
                # The service may run as another user, for whom the file must stay readable.
                os.fchown(file.fileno(), status.st_uid, status.st_gid)
                os.fchmod(file.fileno(), status.st_mode & 0o777)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_path(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m serve.new_key", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--role", choices=ROLES, required=True)
    parser.add_argument("--name", help="label of the key in the log; no secret")
    parser.add_argument("--index", action="append", default=[], metavar="ALIAS", help="may be repeated; none: all")
    parser.add_argument("--task", action="append", default=[], help="may be repeated; none: all")
    parser.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="documents that it sees and writes; may be repeated",
    )
    parser.add_argument("--expires", metavar="YYYY-MM-DD", help="from this day on (UTC) it is refused")
    parser.add_argument("--file", type=Path, help="file of keys to which the line is added")
    return parser


if __name__ == "__main__":
    main()
