"""Sets of row ids in 16 bytes an id: those of a million rows fit into 16 MB."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

Ids = Sequence[str] | NDArray[np.bytes_]
"""Row ids as text, or packed."""


class RowIds:
    """An immutable set of ids as `records.content_id` makes them (32 hexadecimal digits)."""

    def __init__(self, parts: Iterable[Ids]) -> None:
        """From lists of ids, each packed as it comes if it is not yet.

        Raises:
            ValueError: an id is not of 32 hexadecimal digits.
        """
        packed = [pack_ids(part) for part in parts]
        everything = np.concatenate(packed) if packed else np.empty(0, dtype="S16")
        self.total = len(everything)
        """Ids given, repetitions included."""
        self._sorted = np.unique(everything)

    @classmethod
    def joined(cls, sets: Iterable[RowIds]) -> RowIds:
        """The ids of several sets; `total` counts what was given to each of them."""
        joined, parts = cls([]), list(sets)
        joined.total = sum(part.total for part in parts)
        joined._sorted = np.unique(np.concatenate([joined._sorted, *(part._sorted for part in parts)]))
        return joined

    def __len__(self) -> int:
        return len(self._sorted)

    def positions(self, ids: Ids) -> NDArray[np.int64]:
        """Position of each id among the sorted ones, or -1."""
        wanted = pack_ids(ids)
        positions = np.searchsorted(self._sorted, wanted)
        # An id beyond the last one is given the length, which is no position.
        inside = positions < len(self._sorted)
        known = np.full(len(wanted), -1, dtype=np.int64)
        known[inside] = np.where(self._sorted[positions[inside]] == wanted[inside], positions[inside], -1)
        return known

    def contains(self, ids: Ids) -> NDArray[np.bool_]:
        """Truth of each id being one of these."""
        return self.positions(ids) >= 0

    def missing_from(self, other: RowIds) -> tuple[int, str]:
        """Number of these ids that the other set lacks, and the first of them (empty if none)."""
        lacking = np.setdiff1d(self._sorted, other._sorted, assume_unique=True)
        # NumPy has stripped the zero bytes at the end.
        return len(lacking), lacking[0].ljust(16, b"\0").hex() if len(lacking) else ""


def pack_ids(ids: Ids) -> NDArray[np.bytes_]:
    """16 bytes an id; those that are packed stay as they are.

    Raises:
        ValueError: an id is not of 32 hexadecimal digits.
    """
    if isinstance(ids, np.ndarray):
        return ids
    wrong = next((row_id for row_id in ids if len(row_id) != 32), None)
    if wrong is not None:
        raise ValueError(f"{wrong!r} is no row id of 32 hexadecimal digits")
    # NumPy ignores trailing zero bytes of such values, which is harmless because all have one length.
    return np.frombuffer(bytes.fromhex("".join(ids)), dtype="S16")
