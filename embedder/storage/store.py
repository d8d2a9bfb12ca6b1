"""Stores that keep a name's first content: the one primitive on which everything shared between processes stands.

    put_if_absent(name, content) -> bool    True: stored, and durable; False: the name has a content already

A folder of this machine or of NFS is one more store beside S3, Google Cloud Storage and Azure. What is stored appears
as a whole and never changes; of two writers of one name exactly one is told True. `open_store` tries that before
anything depends on it, because some servers that speak S3 ignore the condition.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol


class Entry(NamedTuple):
    """An object in a listing."""

    name: str
    """Its last part, without the folder."""
    stored_s: float
    """When it was stored, by the store's clock, in seconds since 1970."""


class Store(Protocol):
    """Objects by name; a name is parts between slashes, as `log/000000000042.arrow`."""

    def put_if_absent(self, name: str, content: bytes) -> bool:
        """Store an object unless there is one of that name; it is durable when this returns, whatever it returns.

        Raises:
            StorageError: the store does not answer or refuses; the object may have been stored or may yet be.
        """

    def get(self, name: str) -> bytes | None:
        """The whole content; None: there is no such object.

        Raises:
            StorageError: the store does not answer, or refuses.
        """

    def entries(self, folder: str, after: str = "") -> list[Entry]:
        """The objects right below a folder whose names come after `after`, in the order of their names.

        Raises:
            StorageError: the store does not answer, or refuses.
        """

    def remove(self, name: str) -> None:
        """Remove an object, which may be gone already.

        Raises:
            StorageError: the store does not answer, or refuses.
        """
