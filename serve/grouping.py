"""Groups of hits: the best values of a field, each with its best hits, such as the best passage of each document."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from embedder.data.metadata import DATASET_FIELD, ID_FIELD, Scalar, kind_of, values_of
from embedder.index.documents import plain_dataset
from embedder.index.filters import Condition, Filter, Match, both
from embedder.index.results import Hit, SearchResults
from embedder.index.search_options import MAX_RESULTS

MOST_ROUNDS = 5
"""Searches for one answer: where a few values have all the best hits, the others are asked for without them."""

LEAST_DEPTH = 100
"""Hits of one of these searches."""

Rank = Callable[[Filter | None, int], Awaitable[SearchResults]]
"""So many of the best hits of one query that fit a filter."""
Value = tuple[str, Scalar]
"""With its kind, because True, 1 and 1.0 are equal."""


@dataclass(frozen=True)
class Grouping:
    """Which values make a group, and how many hits it has."""

    field: str
    size: int


class _Groups:
    """The groups that were found so far, the best first."""

    def __init__(self, grouping: Grouping, most: int) -> None:
        self._grouping, self._most = grouping, most
        self._hits: dict[Value, list[Hit]] = {}

    @property
    def are_enough(self) -> bool:
        return len(self._hits) >= self._most

    @property
    def values(self) -> list[Scalar]:
        return [value for _, value in self._hits]

    @property
    def short(self) -> list[Scalar]:
        """The values that could have more hits."""
        return [value for (_, value), hits in self._hits.items() if len(hits) < self._grouping.size]

    def take(self, hits: list[Hit]) -> None:
        """Take in hits, best first; those of one search come before all that a later one for new values finds."""
        for hit in hits:
            for value in _values(hit, self._grouping.field):
                if not self.are_enough:
                    self._hits.setdefault((kind_of(value), value), [])
                group = self._hits.get((kind_of(value), value))
                if group is None or len(group) >= self._grouping.size:
                    continue
                if all((one.id, one.dataset) != (hit.id, hit.dataset) for one in group):
                    group.append(replace(hit, group=value))

    def all(self) -> list[Hit]:
        return [hit for hits in self._hits.values() for hit in hits]


async def grouped(rank: Rank, grouping: Grouping, k: int, wanted: Filter | None) -> list[Hit]:
    """The hits of the k best groups, group by group, the group with the best hit first.

    A hit with several values in the field is in the group of each; one without the field is in none.
    """
    groups, depth = _Groups(grouping, k), min(MAX_RESULTS, max(LEAST_DEPTH, 2 * k * grouping.size))
    has_others = True
    for _ in range(MOST_ROUNDS):
        is_first, is_for_others = not groups.values, has_others and not groups.are_enough
        if not is_for_others and not groups.short:
            break
        match = Match.model_validate({"except": groups.values} if is_for_others else {"any": groups.short})
        # Not checked as those of clients: values come from the index, which may have a field of the name of an id.
        own = Filter(must=[Condition.model_construct(key=grouping.field, match=match)])
        results = await rank(both(own, wanted), depth)
        groups.take(results.hits()[0])
        is_all = results.table.num_rows < depth
        if is_all and (is_first or not is_for_others):
            break
        has_others = has_others and not is_all
    return groups.all()


def _values(hit: Hit, field: str) -> list[Scalar]:
    """What a hit holds in a field, each value once."""
    if found := [value for path, kind, value in values_of(hit.metadata) if path == field and kind != "object"]:
        return list(dict.fromkeys(found))
    named: dict[str, Scalar] = {DATASET_FIELD: plain_dataset(hit.dataset), ID_FIELD: hit.id}
    return [named[field]] if field in named else []
