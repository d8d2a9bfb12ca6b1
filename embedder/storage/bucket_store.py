"""S3, Google Cloud Storage and Azure as stores of objects that never change, through obstore."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import lru_cache
from typing import Any

import obstore
from obstore import exceptions
from obstore.store import AzureStore, GCSStore, S3Store

from embedder.credentials import masked
from embedder.errors import ConfigError, StorageError, UnreachableError
from embedder.storage.filesystems import store_parts
from embedder.storage.object_store import ObjectPath
from embedder.storage.store import Entry

RETRIES: Any = {"max_retries": 3, "retry_timeout": timedelta(seconds=10)}
"""Of one request within the library. A writer tells its client after that, and goes on trying itself."""
REQUEST_S = 30
"""Longest time of one request, but for one that sends much."""
PIECE = 8 * 2**20
"""Bytes that one request reads, and at least sends in that time."""
MOST_BYTES = 5 * 10**9
"""Of one object that is sent in one part, as conditions need it."""
ENDPOINTS = {"s3": "endpoint", "gs": "base_url", "az": "endpoint"}
USERS = {"s3": ("access_key_id", "secret_access_key"), "gs": (), "az": ("account_name", "account_key")}
"""What the user info of a URI gives."""


class BucketStore:
    """The objects below a path of an object store."""

    def __init__(self, place: ObjectPath) -> None:
        """Connect, which asks the store nothing yet.

        Raises:
            ConfigError: a parameter of the URI is unknown.
        """
        self._place, self._bucket = place, _bucket(place.store, REQUEST_S)
        folder = place.key.partition("/")[2]
        self._prefix = f"{folder}/" if folder else ""

    def __str__(self) -> str:
        return str(self._place)

    def put_if_absent(self, name: str, content: bytes) -> bool:
        """Store an object by one conditional request."""
        if len(content) > MOST_BYTES:
            raise StorageError(
                f"{self._place}/{name}: {len(content):,} bytes, but an object store takes {MOST_BYTES:,} at once; "
                "build the version anew from a corpus with the documents that were written"
            )
        # The time is that of the whole request, which is a snapshot of all that was written, or a commit.
        bucket = _bucket(self._place.store, REQUEST_S * 2 ** (len(content) // PIECE).bit_length())
        with self._told(name, "written"):
            try:
                # In one part: a multipart upload knows no condition.
                obstore.put(bucket, self._prefix + name, content, mode="create", use_multipart=False)
            except (exceptions.AlreadyExistsError, exceptions.PreconditionError):
                return False
        return True

    def get(self, name: str) -> bytes | None:
        """The content of an object."""
        with self._told(name, "read"):
            path = self._prefix + name
            try:
                found = obstore.get(self._bucket, path)
                size = found.meta["size"]
                if size <= PIECE:
                    return bytes(found.bytes())
                # An object never changes, so that its pieces are those of one.
                pieces = [
                    bytes(obstore.get_range(self._bucket, path, start=start, end=min(size, start + PIECE)))
                    for start in range(0, size, PIECE)
                ]
                return b"".join(pieces)
            except FileNotFoundError:
                return None

    def entries(self, folder: str, after: str = "") -> list[Entry]:
        """The objects right below a folder."""
        prefix, found = f"{self._prefix}{folder}/", []
        with self._told(folder, "listed"):
            # The store itself leaves out what comes before, so that a long log is not listed from its beginning.
            for page in obstore.list(self._bucket, prefix, offset=prefix + after if after else None, chunk_size=1000):
                for item in page:
                    name = item["path"].removeprefix(prefix)
                    if "/" not in name and name > after:
                        found.append(Entry(name, item["last_modified"].timestamp()))
        return sorted(found)

    def remove(self, name: str) -> None:
        """Remove an object."""
        with self._told(name, "removed"), suppress(FileNotFoundError):
            obstore.delete(self._bucket, self._prefix + name)

    @contextmanager
    def _told(self, name: str, done: str) -> Iterator[None]:
        try:
            yield
        except (exceptions.BaseError, OSError, ValueError) as error:
            reason = masked(" ".join(str(error).split("\n\nDebug source:")[0].split()))
        else:
            return
        # Not chained: errors of the library may hold the request with its signature.
        raise UnreachableError(
            f"{self._place}/{name}: cannot be {done} ({reason:.300}); check that the bucket exists, the credentials, "
            "and the endpoint"
        )


@lru_cache(maxsize=64)
def _bucket(uri: str, seconds: int) -> S3Store | GCSStore | AzureStore:
    """The connection of a process to a bucket, whose requests may take so long."""
    scheme, given, bucket, parameters = store_parts(uri)
    config: dict[str, Any] = dict(zip(USERS[scheme], given, strict=False))
    protocol, endpoint = parameters.pop("scheme", "https"), parameters.pop("endpoint_override", "")
    # Of pyarrow's filesystems, and without a meaning here.
    for name in ("allow_bucket_creation", "allow_delayed_open", "anonymous"):
        parameters.pop(name, None)
    if endpoint:
        config[ENDPOINTS[scheme]] = endpoint if "://" in endpoint else f"{protocol}://{endpoint}"
    kind: Any = {"s3": S3Store, "gs": GCSStore, "az": AzureStore}[scheme]
    options = {"timeout": f"{seconds}s", "allow_http": protocol == "http" or endpoint.startswith("http://")}
    try:
        return kind(bucket, config={**config, **parameters}, client_options=options, retry_config=RETRIES)  # type: ignore[no-any-return]
    except (exceptions.BaseError, ValueError, TypeError) as error:
        reason = masked(" ".join(str(error).split("\n\nDebug source:")[0].split()))
    raise ConfigError(f"{masked(uri)}: cannot be opened ({reason:.300}); correct the URI or the environment")
