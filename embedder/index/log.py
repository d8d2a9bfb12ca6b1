"""The write-ahead log of a collection: what was acknowledged is on the disk, and nothing else is ever read.

    magic, committed end, its CRC, length of the header, its CRC, header (JSON), then records
    record: length, CRC of position and content, an Arrow record batch of `operations_schema`

A record is written and synced before the committed end is moved over it. So a record that a kill cut short is behind
the committed end and is dropped, while damage before it is damage to acknowledged writes and is refused. Writers hold
the collection's lock; readers need none.
"""

from __future__ import annotations

import json
import os
import struct
import weakref
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pyarrow as pa

from embedder.errors import BundleError
from embedder.index.collection import CollectionIdentity
from embedder.index.documents import PAYLOAD, DocumentName, Row
from embedder.index.exact import Vectors
from embedder.index.manifest import REMEDY
from embedder.storage.durable import READ_ONLY, write_durably

FORMAT = 2
MAGIC = b"LEMBLOG\n"
END = struct.Struct("<QI")
HEADER = struct.Struct("<II")
RECORD = struct.Struct("<II")
FIRST_BYTE = len(MAGIC) + END.size + HEADER.size


def operations_schema(dimension: int) -> pa.Schema:
    """One written document with its vector, and when it was; one without text is a deletion."""
    return pa.schema([*PAYLOAD, ("vector", pa.list_(pa.float32(), dimension)), ("written_ns", pa.int64())])


def operations(rows: Sequence[Row], vector_PD: Vectors, written_ns: Sequence[int]) -> pa.RecordBatch:
    """Documents as operations."""
    schema = operations_schema(vector_PD.shape[1])
    columns = [pa.array(column, schema.field(i).type) for i, column in enumerate(zip(*rows, strict=True))]
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(vector_PD.ravel()), vector_PD.shape[1])
    return pa.record_batch([*columns, vectors, pa.array(written_ns, pa.int64())], schema=schema)


def deletions(names: Sequence[DocumentName], written_ns: Sequence[int], dimension: int) -> pa.RecordBatch:
    """Deletions as operations."""
    rows = [
        {"id": document_id, "dataset": dataset, "written_ns": written}
        for (document_id, dataset), written in zip(names, written_ns, strict=True)
    ]
    return pa.RecordBatch.from_pylist(rows, schema=operations_schema(dimension))


class Log:
    """One segment: the operations after the generation it is numbered after."""

    def __init__(self, path: Path, identity: CollectionIdentity) -> None:
        """Open a segment, to be read alone where it may not be written.

        Raises:
            BundleError: it is missing, damaged, of another collection, or of another version of this program.
        """
        self.path, self.schema = path, operations_schema(identity.dimension)
        self._peeked = (0, 0)
        try:
            try:
                self._open(os.O_RDWR)
            except OSError as error:
                if error.errno not in READ_ONLY:
                    raise
                self._open(os.O_RDONLY)
        except OSError as error:
            raise BundleError(f"{path}: not readable ({error.strerror}); {REMEDY}") from error
        self.start = self._check_header(identity)

    @staticmethod
    def create(path: Path, identity: CollectionIdentity) -> None:
        """Write an empty segment, which appears as a whole."""
        header = json.dumps({"format": FORMAT, **identity.model_dump()}, sort_keys=True).encode()
        start = FIRST_BYTE + len(header)
        lengths = HEADER.pack(len(header), zlib.crc32(header))
        write_durably(path, MAGIC + _checked_end(start) + lengths + header)

    def append(self, batch: pa.RecordBatch) -> None:
        """Write operations; when this returns they are on the disk and visible. The caller holds the lock.

        Raises:
            OSError: the disk is full, read-only or failing; nothing was written.
        """
        if not self._is_writable:
            # Asked anew each time: the folder may have become writable since.
            self._open(os.O_RDWR)
        end = self.end()
        content = batch.serialize().to_pybytes()
        record = RECORD.pack(len(content), _checksum(end, content)) + content
        try:
            _write(self._file, record, end)
            # Synced before the committed end moves over it, so that a power cut takes nothing before that end.
            os.fsync(self._file)
            # Not synced: readers here see it at once, and after a power cut `recover` finds the record again.
            _write(self._file, _checked_end(end + len(record)), len(MAGIC))
        except OSError:
            # Taken back, or `recover` would find what was refused. A disk that refuses this too has the next record
            # written over it.
            with suppress(OSError):
                os.ftruncate(self._file, end)
            raise

    @property
    def is_empty(self) -> bool:
        return self.end() == self.start

    def sync(self) -> None:
        """Bring the committed end onto the disk too; until then `recover` finds what is behind it."""
        os.fsync(self._file)

    def end(self) -> int:
        """The position at which the acknowledged records end."""
        raw = os.pread(self._file, END.size, len(MAGIC))
        if len(raw) == END.size:
            end, checksum = END.unpack(raw)
            if checksum == zlib.crc32(raw[:8]):
                return self._past_peeked(int(end))
        raise self._damaged("its committed end is not readable")

    def read(self, first: int) -> tuple[list[pa.RecordBatch], int]:
        """The acknowledged records from a position on, and where the next one will begin.

        Raises:
            BundleError: a record is damaged.
        """
        end = self.end()
        if first == end:
            return [], end
        content = _read(self._file, end - first, first)
        batches, position = [], 0
        while position < end - first:
            batch, length = self._record(content, position, first)
            if batch is None:
                raise self._damaged(f"the record at byte {first + position} is damaged")
            batches.append(batch)
            position += length
        return batches, end

    def recover(self) -> None:
        """After a kill: take in what was written but not yet acknowledged, as far as it is whole, and drop the rest.

        The caller holds the lock.
        """
        end, whole = self._whole()
        if whole != end:
            # As in `append`: the records must be on the disk before the end that acknowledges them.
            os.fsync(self._file)
            _write(self._file, _checked_end(whole), len(MAGIC))
        if whole < os.fstat(self._file).st_size:
            os.ftruncate(self._file, whole)

    def peek(self) -> None:
        """Read from now on what `recover` would take in too, where the file cannot be changed."""
        self._peeked = self._whole()

    def _past_peeked(self, end: int) -> int:
        """The end up to which is read, given the one that the file tells."""
        known, whole = self._peeked
        if known < end < whole:
            raise BundleError(
                f"{self.path}: others wrote to it after it was opened read-only; start this process again"
            )
        return whole if end == known else end

    def _open(self, access: int) -> None:
        file = os.open(self.path, access)
        # Not at exit, where other threads may still read; the system closes it then.
        weakref.finalize(self, os.close, file).atexit = False
        self._file, self._is_writable = file, access == os.O_RDWR

    def _whole(self) -> tuple[int, int]:
        """Where the acknowledged records end, and the whole ones that stand behind these."""
        end = position = self.end()
        content = _read(self._file, os.fstat(self._file).st_size - end, end)
        while position - end < len(content):
            batch, length = self._record(content, position - end, end)
            if batch is None:
                break
            position += length
        return end, position

    def _record(self, content: bytes, position: int, offset: int) -> tuple[pa.RecordBatch | None, int]:
        """The record at a position of what was read from `offset` on, None if it is not whole; and its length."""
        if position + RECORD.size > len(content):
            return None, 0
        length, checksum = RECORD.unpack_from(content, position)
        body = content[position + RECORD.size : position + RECORD.size + length]
        if len(body) < length or checksum != _checksum(offset + position, body):
            return None, 0
        return pa.ipc.read_record_batch(pa.py_buffer(body), self.schema), RECORD.size + length

    def _check_header(self, identity: CollectionIdentity) -> int:
        raw = os.pread(self._file, FIRST_BYTE, 0)
        if len(raw) < FIRST_BYTE or not raw.startswith(MAGIC):
            raise self._damaged("not a log")
        length, checksum = map(int, HEADER.unpack_from(raw, FIRST_BYTE - HEADER.size))
        header = os.pread(self._file, length, FIRST_BYTE)
        if len(header) < length or checksum != zlib.crc32(header):
            raise self._damaged("its header is damaged")
        fields = json.loads(header)
        if fields.pop("format") != FORMAT:
            raise BundleError(
                f"{self.path}: not of format {FORMAT}; use the version of this program that wrote it, and compact there"
            )
        for name, value in identity.model_dump().items():
            if fields.get(name) != value:
                raise BundleError(f"{self.path}: {name} is {fields.get(name)!r}, not {value!r}; {REMEDY}")
        if not FIRST_BYTE + length <= self.end() <= os.fstat(self._file).st_size:
            raise self._damaged("it is shorter than what was acknowledged")
        return FIRST_BYTE + length

    def _damaged(self, reason: str) -> BundleError:
        return BundleError(f"{self.path}: {reason}; restore a snapshot, or remove the file and lose what it holds")


def _checked_end(end: int) -> bytes:
    return END.pack(end, zlib.crc32(struct.pack("<Q", end)))


def _checksum(position: int, content: bytes) -> int:
    # With the position, so that a record left over from before a truncation is not taken for one that belongs here.
    return zlib.crc32(content, zlib.crc32(struct.pack("<Q", position)))


def _write(file: int, content: bytes, position: int) -> None:
    """Write all of it; the system may take a part at a time."""
    written = 0
    while written < len(content):
        written += os.pwrite(file, content[written:], position + written)


def _read(file: int, length: int, position: int) -> bytes:
    """All of it, or what there is; the system hands out 2 GiB at a time."""
    parts: list[bytes] = []
    while length > 0 and (part := os.pread(file, length, position)):
        parts.append(part)
        length, position = length - len(part), position + len(part)
    return b"".join(parts)
