"""Sets of row ids in 16 bytes an id: those of a million rows fit into 16 MB."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray


class RowIds:
    """An immutable set of ids as `records.content_id` makes them (32 hexadecimal digits)."""

    def __init__(self, parts: Iterable[Sequence[str]]) -> None:
        """From lists of ids, each packed as it comes.

        Raises:
            ValueError: an id is not of 32 hexadecimal digits.
        """
        packed = [_pack(part) for part in parts]
        everything = np.concatenate(packed) if packed else np.empty(0, dtype="S16")
        self.total = len(everything)
        """Ids given, repetitions included."""
        self._sorted = np.unique(everything)

    def __len__(self) -> int:
        return len(self._sorted)

    def places(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """For each id its place among the sorted ones, or -1."""
        wanted = _pack(ids)
        places = np.searchsorted(self._sorted, wanted)
        inside = places < len(self._sorted)
        found = np.full(len(wanted), -1, dtype=np.int64)
        found[inside] = np.where(self._sorted[places[inside]] == wanted[inside], places[inside], -1)
        return found

    def contains(self, ids: Sequence[str]) -> NDArray[np.bool_]:
        """For each id whether it is one of these."""
        return self.places(ids) >= 0

    def missing_from(self, other: RowIds) -> tuple[int, str]:
        """How many of these the other set lacks, and the first of them (empty if none)."""
        lacking = np.setdiff1d(self._sorted, other._sorted, assume_unique=True)
        return len(lacking), _unpack(lacking[0]) if len(lacking) else ""


def _pack(ids: Sequence[str]) -> NDArray[np.bytes_]:
    """16 bytes an id. NumPy ignores trailing zero bytes, which is harmless among values of one length."""
    if any(len(one) != 32 for one in ids):
        raise ValueError(f"{next(one for one in ids if len(one) != 32)!r} is no row id of 32 hexadecimal digits")
    return np.frombuffer(bytes.fromhex("".join(ids)), dtype="S16")


def _unpack(packed: bytes) -> str:
    return packed.ljust(16, b"\0").hex()
