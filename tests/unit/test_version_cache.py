"""What a replica loads: once for all who wait, again after a failure, and let go of when it is not served any more."""

from __future__ import annotations

import asyncio
import threading

import pytest

from embedder.errors import BundleError
from serve.deployments import version_cache
from serve.deployments.version_cache import VersionCache
from serve.versions.served import shards_of
from tests.event_loop import settle
from tests.waiting import wait_until


def test_version_cache_loads_once_for_all_who_wait_even_if_the_first_gives_up():
    calls, free = [], threading.Event()

    def load(version):
        calls.append(version)
        free.wait(60)
        return f"value of {version}"

    async def main():
        loaded = VersionCache(load)
        first, second = (asyncio.create_task(loaded.get("v1")) for _ in range(2))
        await asyncio.to_thread(wait_until, lambda: calls == ["v1"])
        first.cancel()
        await settle()
        free.set()
        return await second, await loaded.get("v1")

    assert asyncio.run(main()) == ("value of v1",) * 2 and calls == ["v1"]


def test_version_cache_tells_a_failure_to_all_and_the_next_tries_again():
    outcomes = [ValueError("damaged"), "value"]

    def load(_):
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def main():
        loaded = VersionCache(load)
        failed = await asyncio.gather(loaded.get("v1"), loaded.get("v1"), return_exceptions=True)
        assert [type(one) for one in failed] == [ValueError, ValueError]
        return await loaded.get("v1")

    assert asyncio.run(main()) == "value"


def test_version_cache_unloads_what_no_alias_names_and_nobody_asks_for(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(version_cache.time, "monotonic", lambda: now[0])
    loaded = VersionCache(str.upper)
    loaded.preload(["old", "new", "used"], "other")
    loaded.unload(["new"])
    assert sorted(loaded.loaded()) == ["NEW", "OLD", "USED"]
    now[0] += version_cache.IDLE_S + 1
    loaded._used["used"] = now[0]
    loaded.unload(["new"])
    assert sorted(loaded.loaded()) == ["NEW", "USED"]


def test_version_cache_starts_with_what_can_be_loaded_of_what_is_named():
    def load(version):
        if version == "damaged":
            raise BundleError(version)
        return version

    loaded = VersionCache(load)
    loaded.preload(["damaged", "live"], "deployed")
    assert loaded.loaded() == ["live"]
    loaded = VersionCache(load)
    loaded.preload(["damaged"], "deployed")
    assert loaded.loaded() == ["deployed"]
    with pytest.raises(BundleError):
        VersionCache(load).preload(["damaged"], "damaged")


@pytest.mark.parametrize(("num_slices", "num_shards"), [(1, 1), (2, 3), (3, 2), (4, 4), (3, 10)])
def test_shard_of_a_version_is_held_by_one_slice(num_slices, num_shards):
    held = [shards_of(one, num_slices, num_shards) for one in range(num_slices)]
    assert sorted(shard for part in held for shard in part) == list(range(num_shards))
    assert all(shard % num_slices == one for one, part in enumerate(held) for shard in part)
