"""What waits is shared out: no owner waits for more of another's than its share, in whatever order things come."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.deployments.fair_queue import FairQueue, is_beyond_share, work_before

OWNERS, MOST = "abc", 9
STEPS = st.lists(
    st.one_of(st.tuples(st.sampled_from(OWNERS), st.integers(1, MOST)), st.just(None)), min_size=1, max_size=200
)
"""An item of so much work that begins to wait, or a turn."""


def take(queue: FairQueue[int]) -> tuple[str, int]:
    owner, work = queue.first()
    queue.charge(owner, work)
    assert queue.pop(owner) == work
    return owner, work


@given(STEPS)
def test_owner_that_waits_is_behind_no_other_by_more_than_the_largest_piece_of_each(
    steps: list[tuple[str, int] | None],
) -> None:
    queue: FairQueue[int] = FairQueue()
    had: dict[str, Counter[str]] = {}
    """By owner that waits: what each has had since it began to."""
    for step in steps:
        if step is not None:
            had.setdefault(step[0], Counter())
            queue.add(*step)
        elif queue:
            owner, work = take(queue)
            for seen in had.values():
                seen[owner] += work
        had = {owner: seen for owner, seen in had.items() if owner in queue.owners}
        for owner, seen in had.items():
            assert all(seen[other] - seen[owner] <= 2 * MOST for other in OWNERS), (owner, seen)


@given(STEPS)
def test_queue_gives_all_that_it_was_given_and_each_owners_in_its_order(steps: list[tuple[str, int] | None]) -> None:
    queue: FairQueue[int] = FairQueue()
    added, taken = [], []
    for step in steps:
        if step is not None:
            queue.add(*step)
            added.append(step)
        elif queue:
            taken.append(take(queue))
    assert len(queue) == len(list(queue)) == len(added) - len(taken)
    while queue:
        taken.append(take(queue))
    for owner in OWNERS:
        assert [one for one in taken if one[0] == owner] == [one for one in added if one[0] == owner]


def test_one_text_waits_for_one_piece_of_a_thousand_and_not_for_all() -> None:
    queue: FairQueue[int] = FairQueue()
    for _ in range(1000):
        queue.add("many", 10)
    for _ in range(5):
        take(queue)
    queue.add("one", 1)
    assert "one" in {take(queue)[0] for _ in range(2)}


def test_names_of_owners_do_not_pile_up() -> None:
    queue: FairQueue[int] = FairQueue()
    queue.add("stays", 1)
    for number in range(1000):
        queue.add(f"address {number}", 1)
        queue.add("stays", 1)
        take(queue)
        take(queue)
    assert len(queue._had) < 10


@pytest.mark.parametrize(
    ("own", "others", "work", "before"),
    [(0, [], 5, 0), (10, [], 5, 10), (0, [1000], 5, 5), (0, [3, 1000], 5, 8), (10, [1000, 2], 5, 27)],
)
def test_work_before_is_what_equal_shares_do_meanwhile(
    own: float, others: list[float], work: float, before: float
) -> None:
    assert work_before(own, others, work) == before


def test_what_is_full_still_has_the_share_of_who_has_little() -> None:
    assert not is_beyond_share(99, 99, 100, 1) and is_beyond_share(100, 100, 100, 1)
    assert is_beyond_share(100, 100, 100, 2) and not is_beyond_share(0, 100, 100, 2)
    assert is_beyond_share(50, 150, 100, 2)
