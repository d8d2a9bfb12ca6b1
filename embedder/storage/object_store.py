"""Where a run's files may be: local folders, and object stores through pyarrow's filesystems.

`ObjectPath` has the part of pathlib's interface that readers and writers of both kinds use. Only stores in which an
object appears as a whole are taken (S3 and what speaks its protocol, Google Cloud Storage, Azure): there a write needs
no temporary name and no rename. The user info of a URI (access key and secret) is used to connect and never shown.
"""

from __future__ import annotations

import io
import mmap
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from tempfile import TemporaryFile, gettempdir
from typing import BinaryIO, Literal
from urllib.parse import parse_qsl, quote, unquote, urlencode
from uuid import uuid4

import pyarrow as pa
from pyarrow import fs

from embedder.credentials import masked
from embedder.errors import DataError, NoAnswerError
from embedder.storage.durable import naming
from embedder.storage.filesystems import filesystem_of

URI = re.compile(
    r"(?P<scheme>[^:/]+)://(?:(?P<user>[^@/?#]*)@)?(?P<bucket>[^@:/?#\s]+)(?P<path>/[^?#]*)?(?:\?(?P<query>[^#]*))?"
)
SCHEMES = ("s3", "gs", "az")
SHOWN_PARAMETERS = {"endpoint_override", "region", "scheme"}
"""Of a URI's query; the values of all others are masked."""
LONGEST_NAME = 255
"""Bytes of a file's name on Linux and macOS."""
BUFFER_BYTES = 8 * 2**20
"""Read at once from an object: each piece costs a round trip."""


@dataclass(frozen=True)
class ObjectPath:
    """An object, or all objects below a name, like a folder; make one with `parse`."""

    store: str = field(repr=False)
    """URI of the bucket, with all that is needed to connect; may hold a secret."""
    key: str
    """Bucket and name, `bucket/run/candidates`."""

    @classmethod
    def parse(cls, uri: str) -> ObjectPath:
        """The path a URI names, percent-decoded: `s3://bucket/run`, `s3://key:secret@bucket/run?region=eu-west-1`.

        Nothing is connected to; that is done by the first read or write.

        Raises:
            ValueError: it is no URI of a store that is supported.
        """
        parts = URI.fullmatch(uri)
        scheme = uri.partition("://")[0]
        if scheme not in SCHEMES:
            raise ValueError(
                f"{scheme}:// is not supported; give s3://bucket/folder, gs://bucket/folder, az://container/folder, "
                "or a folder that every node mounts"
            )
        if parts is None:
            raise ValueError(
                f"not of the form {scheme}://bucket/folder?region=..., with an optional KEY:SECRET@ before the bucket; "
                "in names write # as %23, ? as %3F, % as %25, and in a secret / as %2F, @ as %40"
            )
        names = unquote(parts["path"] or "").removeprefix("/").removesuffix("/")
        if names and {"", ".", ".."} & set(names.split("/")):
            raise ValueError("a name between two slashes is empty, '.' or '..'; object stores take it literally")
        user = f"{parts['user']}@" if parts["user"] else ""
        query = f"?{parts['query']}" if parts["query"] else ""
        key = f"{parts['bucket']}/{names}" if names else parts["bucket"]
        return cls(f"{scheme}://{user}{parts['bucket']}{query}", key)

    def __str__(self) -> str:
        return f"{self.store.partition('://')[0]}://{self.key}"

    @property
    def uri(self) -> str:
        """A URI that `parse` takes, with the user info and all but harmless parameters masked."""
        scheme, _, rest = self.store.partition("://")
        parameters = [
            (name, value if name in SHOWN_PARAMETERS else "***")
            for name, value in parse_qsl(rest.partition("?")[2], keep_blank_values=True)
        ]
        query = f"?{urlencode(parameters, safe='*')}" if parameters else ""
        return f"{scheme}://{'***@' if '@' in rest.partition('?')[0] else ''}{quote(self.key)}{query}"

    @property
    def reference(self) -> str:
        """A URI that `parse` takes, with its secrets: for this program's own processes, and never to be shown."""
        place, _, query = self.store.partition("?")
        names = quote(self.key.partition("/")[2])
        return f"{place}{f'/{names}' if names else ''}{f'?{query}' if query else ''}"

    def __truediv__(self, name: str) -> ObjectPath:
        return ObjectPath(self.store, f"{self.key}/{name}")

    def with_name(self, name: str) -> ObjectPath:
        """The same with another last part."""
        return self.parent / name

    @property
    def parent(self) -> ObjectPath:
        return ObjectPath(self.store, self.key.rpartition("/")[0])

    @property
    def name(self) -> str:
        return PurePosixPath(self.key).name

    @property
    def stem(self) -> str:
        return PurePosixPath(self.key).stem

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.key).suffix

    @property
    def filesystem(self) -> fs.FileSystem:
        """The connection, one per process and store.

        Raises:
            ConfigError: a parameter of the URI is unknown, or the store's region cannot be found.
        """
        return filesystem_of(self.store)

    def is_file(self) -> bool:
        """Whether there is such an object.

        Raises:
            DataError: the store does not answer, or refuses.
        """
        with _reported(self, "looked up"):
            return bool(self.filesystem.get_file_info(self.key).type == fs.FileType.File)

    def is_dir(self) -> bool:
        """Whether there is an object below this name.

        Raises:
            DataError: the store does not answer, or refuses.
        """
        with _reported(self, "looked up"):
            return bool(self.filesystem.get_file_info(self.key).type == fs.FileType.Directory)

    def glob(self, pattern: str) -> Iterator[ObjectPath]:
        """The entries below this name that match a pattern, of which each part between slashes is that of a level.

        Raises:
            DataError: there is no such bucket, or the store does not answer or refuses.
        """
        first, _, rest = pattern.partition("/")
        for info in self._listed(recursive=False):
            if not fnmatchcase(info.base_name, first):
                continue
            if not rest:
                yield self / info.base_name
            elif info.type == fs.FileType.Directory:
                yield from (self / info.base_name).glob(rest)

    def walk(self) -> Iterator[tuple[str, tuple[int, int]]]:
        """Every object below this name: its name from here on, and its size and time of last change (ns).

        Raises:
            DataError: there is no such bucket, or the store does not answer or refuses; or an object's name cannot be
                that of a file.
        """
        for info in self._listed(recursive=True):
            if info.type == fs.FileType.File:
                name = info.path.removeprefix(f"{self.key}/")
                self.check_name(name)
                yield name, (info.size, info.mtime_ns)

    def check_name(self, name: str) -> None:
        """Refuse a name of the store that would leave the folder it is fetched into, or could not be written there.

        Raises:
            DataError: it would.
        """
        parts = name.split("/")
        # `run//etc/x` is a name of its own in a store, but `folder / "/etc/x"` is a file outside of the folder.
        if {"", ".", ".."} & set(parts) or "\0" in name or any(len(part.encode()) > LONGEST_NAME for part in parts):
            raise DataError(
                f"{self}: holds an object {name!r:.200}, whose name cannot be that of a file; rename or remove it"
            )

    def stamp(self) -> tuple[int, int]:
        """Size and time of last change (ns) of the object.

        Raises:
            DataError: there is no such object, or the store does not answer or refuses.
        """
        with _reported(self, "looked up"):
            info = self.filesystem.get_file_info(self.key)
            if info.type != fs.FileType.File:
                raise FileNotFoundError(self.key)
        return info.size, info.mtime_ns

    def _listed(self, *, recursive: bool) -> list[fs.FileInfo]:
        with _reported(self, "listed"):
            selector = fs.FileSelector(self.key, recursive=recursive, allow_not_found=True)
            found: list[fs.FileInfo] = self.filesystem.get_file_info(selector)
            if not found and self._bucket_is_missing():
                raise FileNotFoundError(self.key)
        return found

    def _bucket_is_missing(self) -> bool:
        """Asked where a listing is empty; who may list these names may perhaps not ask after the bucket."""
        try:
            return bool(self.filesystem.get_file_info(self.key.partition("/")[0]).type == fs.FileType.NotFound)
        except OSError:
            return False

    def open(self, mode: Literal["rb"]) -> io.BufferedReader:
        """The object's bytes, to be read from first to last.

        Raises:
            DataError: there is no such object, or the store does not answer or refuses.
        """
        if mode != "rb":
            raise ValueError(f"mode is {mode!r}; objects are read with 'rb' and written with `replacing`")
        with _reported(self, "read"):
            return io.BufferedReader(self.filesystem.open_input_stream(self.key), BUFFER_BYTES)

    def read_text(self, encoding: str = "utf-8") -> str:
        """The whole object as text.

        Raises:
            DataError: there is no such object, or the store does not answer or refuses.
        """
        with _reported(self, "read"), self.open("rb") as file:
            return file.read().decode(encoding)

    def unlink(self, missing_ok: bool = False) -> None:
        """Remove the object.

        Raises:
            DataError: there is no such object, or the store does not answer or refuses.
        """
        if missing_ok and not self.is_file():
            return
        with _reported(self, "removed"):
            self.filesystem.delete_file(self.key)

    def remove_below(self) -> None:
        """Remove all objects below this name, if there are any.

        Raises:
            DataError: the store does not answer, or refuses.
        """
        if self.is_dir():
            # All at once: where objects are removed one by one, Arrow leaves an empty one in the name of the folder.
            with _reported(self, "removed"):
                self.filesystem.delete_dir(self.key)


AnyPath = Path | ObjectPath
"""A path of a run's files, wherever they are."""


def entries(folder: AnyPath, pattern: str) -> list[AnyPath]:
    """What is below a folder and fits a pattern, by name."""
    found: Iterable[AnyPath] = folder.glob(pattern)
    return sorted(found, key=str)


def stamp_of(path: AnyPath) -> tuple[int, int]:
    """Size and time of the last change (ns) of a file or object."""
    if isinstance(path, ObjectPath):
        return path.stamp()
    known = path.stat()
    return known.st_size, known.st_mtime_ns


def reference_of(path: AnyPath) -> str:
    """A model folder as every process of the run is told of it; never to be shown, since it may hold a secret."""
    return path.reference if isinstance(path, ObjectPath) else str(path)


@contextmanager
def replacing(path: AnyPath) -> Iterator[BinaryIO]:
    """A file to write that takes the place of `path` when the block ends, and leaves nothing when it fails.

    A local file appears by a rename. An object is written to a local temporary file first (in `TMPDIR`) and uploaded
    when that is whole.

    Raises:
        DataError: the object store does not answer, or refuses.
    """
    if isinstance(path, ObjectPath):
        # A file first: a stream to the store publishes what it holds even when the writer fails half way.
        with TemporaryFile() as file:
            with naming(Path(gettempdir())):
                yield file
                file.flush()
            _upload(file, path)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without its name, which may be as long as one can be.
    temporary = path.with_name(f".{uuid4().hex}")
    try:
        with naming(path), temporary.open("wb") as file:
            yield file
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def upload(file: Path, path: ObjectPath) -> None:
    """Make a file an object, which appears as a whole. While it is sent it is in memory.

    Raises:
        DataError: the store does not answer, or refuses, or the file became shorter meanwhile.
        FileNotFoundError: there is no such file.
    """
    with file.open("rb") as content:
        try:
            _upload(content, path)
        except ValueError as error:
            raise DataError(f"{file}: changed while it was sent ({error}); it is sent again later") from error


def download(path: ObjectPath, file: Path) -> None:
    """Make an object a file, which appears as a whole.

    Raises:
        DataError: there is no such object, or the store does not answer or refuses; or the file cannot be made.
    """
    try:
        with replacing(file) as target, path.open("rb") as content, _reported(path, "read"):
            shutil.copyfileobj(content, target, BUFFER_BYTES)
    # A store may hold both `a` and `a/b`, of which a folder can only hold one.
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise DataError(
            f"{path}: {file} cannot be a file here ({error.strerror}); rename or remove one of the two"
        ) from error


def _upload(file: BinaryIO, path: ObjectPath) -> None:
    """Publish a whole file as one object.

    An output stream publishes what it holds when it is closed, even by an exception or the garbage collector. So all
    is handed over by one call, on a thread of its own, which no signal interrupts between the lines.
    """
    size = file.seek(0, os.SEEK_END)

    def put() -> None:
        content = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) if size else b""
        stream = path.filesystem.open_output_stream(path.key)
        stream.write(content)
        stream.close()

    with _reported(path, "written"), ThreadPoolExecutor(1) as pool:
        pool.submit(put).result()


@contextmanager
def _reported(path: ObjectPath, done: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such bucket or object, so that it cannot be {done}; correct the path") from error
    except (OSError, pa.ArrowException) as error:
        reason = masked(str(error).splitlines()[0])
        raise NoAnswerError(
            f"{path}: cannot be {done} ({reason}); check that the bucket exists, the credentials, and the endpoint "
            "(AWS_ENDPOINT_URL, or endpoint_override in the URI)"
        ) from error
