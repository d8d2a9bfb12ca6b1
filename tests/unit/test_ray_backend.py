"""Calls over Ray's handles: made again when a replica dies, given up at the deadline, overload as 429."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError
from ray.serve._private.common import DeploymentID, ReplicaState
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.schema import (
    ApplicationStatus,
    ApplicationStatusOverview,
    DeploymentStatus,
    DeploymentStatusOverview,
    ServeStatus,
)

from embedder.config.serve import ServeConfig
from embedder.errors import ConfigError
from embedder.index.opened import OpenIndex
from embedder.index.search_options import SearchOptions
from serve.backend import CALL_FORMAT, DEADLINE, LONG_CALLS, QUICK_CALLS, Piece
from serve.deployments.ray_backend import Deployments, state_of_deployments
from serve.http_errors import ApiError
from tests.event_loop import settle

DIED = ActorDiedError()


class Response:
    """What a handle's call gives."""

    def __init__(self, outcome, log):
        self.outcome, self.log = outcome, log

    def __await__(self):
        if self.outcome == "hang":
            yield from asyncio.get_running_loop().create_future().__await__()
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome

    def cancel(self):
        self.log.append("cancelled")


class Handle:
    """A handle whose calls end as they are told, one after another."""

    def __init__(self, *outcomes):
        self.outcomes, self.log = list(outcomes), []
        self.encode = self.call = self
        self.deployment_name = "encoder"

    def remote(self, *arguments, call_format):
        assert call_format == CALL_FORMAT
        self.log.append(arguments)
        return Response(self.outcomes.pop(0), self.log)


def encode(handle, seconds=10.0, retries=2, text="text"):
    """What `encode` gives or raises within a deadline, and how often it was made again."""
    again = []

    async def main():
        DEADLINE.set(time.monotonic() + seconds)
        backend = Deployments(ServeConfig(retries=retries), handle, [], lambda: again.append(1))
        return await backend._encode("v1", [Piece([text])], True)

    return outcome(main(), again)


def call(handle, method, *arguments, seconds=0.4):
    """What a call of an index gives or raises within a deadline, and how often it was made again."""
    again = []

    async def main():
        DEADLINE.set(time.monotonic() + seconds)
        backend = Deployments(ServeConfig(), None, [None, handle], lambda: again.append(1))
        return await backend.call(1, "v1", method, *arguments)

    return outcome(main(), again)


def outcome(main, again):
    try:
        return asyncio.run(main), len(again)
    except Exception as error:  # noqa: BLE001 - it is looked at
        return error, len(again)


@pytest.mark.parametrize(
    ("status", "replicas", "gives_up"),
    [
        (ApplicationStatus.RUNNING, {}, False),
        (ApplicationStatus.DELETING, {ReplicaState.STOPPING: 1}, False),
        (ApplicationStatus.DELETING, {}, True),
    ],
)
def test_call_is_given_up_when_its_application_is_deleted_and_no_replica_is_left(
    monkeypatch, status, replicas, gives_up
):
    """It would wait for a replica until its deadline, and the deletion for it."""
    deployments = {"encoder": DeploymentStatusOverview(DeploymentStatus.UPDATING, "", replicas, "")}
    application = ApplicationStatusOverview(status, "", 0.0, deployments)
    monkeypatch.setattr("serve.deployments.ray_backend._application", lambda name: application)
    context = SimpleNamespace(app_name="a")
    monkeypatch.setattr("serve.deployments.ray_backend.serve.get_replica_context", lambda: context)

    async def main():
        DEADLINE.set(time.monotonic() + 0.5)
        handle = Handle("hang", "hang", "hang")
        backend = Deployments(ServeConfig(), handle, [], lambda: None)
        asking = asyncio.ensure_future(backend._encode("v1", [Piece(["word " * 5000])], True))
        await settle()
        await backend.follow_deletion()
        return await asking

    error, _ = outcome(main(), [])
    assert isinstance(error, ApiError) == gives_up and isinstance(error, TimeoutError) == (not gives_up)
    assert not gives_up or (error.status, error.code) == (503, "stopping")


def test_call_whose_replica_dies_is_made_again_with_the_same_arguments():
    handle = Handle(DIED, ActorUnavailableError("no route", None), "vectors")
    assert encode(handle) == ("vectors", 2)
    assert handle.log == [("v1", [Piece(["text"])], True)] * 3


def test_call_is_not_made_again_for_ever():
    error, again = encode(Handle(DIED, DIED, DIED, "vectors"))
    assert isinstance(error, ApiError) and error.status == 503 and again == 2


def test_call_passes_by_a_replica_that_finds_itself_failing():
    failing = RayTaskError("encode", "traceback", ApiError(503, "an encoder is failing"))
    assert encode(Handle(failing.as_instanceof_cause(), "vectors")) == ("vectors", 1)


def test_call_is_cancelled_at_the_deadline():
    handle = Handle("hang")
    error, again = encode(handle, seconds=0.05)
    assert isinstance(error, TimeoutError) and again == 0 and handle.log[-1] == "cancelled"


def test_call_that_hangs_is_given_up_in_time_to_make_it_again(monkeypatch):
    monkeypatch.setattr("serve.deployments.ray_backend.LEAST_S", 0.05)
    handle = Handle("hang", "vectors")
    assert encode(handle, seconds=0.4) == ("vectors", 1) and handle.log[1] == "cancelled"
    error, again = encode(Handle("hang", "vectors"), seconds=0.4, text="much work " * 2000)
    assert isinstance(error, TimeoutError) and again == 0


def test_call_of_an_index_travels_by_the_name_of_its_method():
    handle = Handle(DIED, 3)
    assert call(handle, OpenIndex.delete, "qa", [("a", "")], seconds=10.0) == (3, 1)
    assert handle.log == [("v1", "delete", "qa", [("a", "")])] * 2


@pytest.mark.parametrize("method", LONG_CALLS)
def test_call_of_an_index_that_may_be_long_is_waited_for(method, monkeypatch):
    monkeypatch.setattr("serve.deployments.ray_backend.LEAST_S", 0.05)
    error, again = call(Handle("hang", "answer"), method, "qa")
    assert isinstance(error, TimeoutError) and again == 0


@pytest.mark.parametrize("mode", ["lexical", "hybrid", "dense"])
def test_search_by_words_that_hangs_is_not_made_again_on_another_replica(monkeypatch, mode):
    monkeypatch.setattr("serve.deployments.ray_backend.LEAST_S", 0)
    result, again = call(Handle(*["hang"] * 4), OpenIndex.rank, "qa", SearchOptions(mode=mode))
    assert (isinstance(result, TimeoutError), again > 0) == (True, mode == "dense")


@pytest.mark.parametrize("method", QUICK_CALLS)
def test_call_of_an_index_that_is_quick_is_made_again_when_it_hangs(method, monkeypatch):
    monkeypatch.setattr("serve.deployments.ray_backend.LEAST_S", 0.05)
    assert call(Handle("hang", "answer"), method, "qa") == ("answer", 1)


@pytest.mark.parametrize(
    ("raised", "status"),
    [(BackPressureError(5, 3), 429), (DeploymentUnavailableError(DeploymentID(name="encoder")), 503)],
)
def test_call_under_overload_or_to_what_is_not_ready_has_its_status(raised, status):
    error, again = encode(Handle(raised, raised, raised))
    assert isinstance(error, ApiError) and error.status == status and again == (0 if status == 429 else 2)


@pytest.mark.parametrize("raised", [ConfigError("no such task"), ApiError(400, "too many tokens", param="input")])
def test_call_raises_what_the_replica_raises_and_is_not_made_again(raised):
    error, again = encode(Handle(RayTaskError("rank", "traceback", raised).as_instanceof_cause()))
    assert error is raised and again == 0


def test_deployment_states_are_as_ray_gives_them(monkeypatch):
    overview = DeploymentStatusOverview("HEALTHY", "UNSPECIFIED", {"RUNNING": 2}, "")
    overview.status = DeploymentStatus.HEALTHY
    application = ApplicationStatusOverview("RUNNING", "", 0.0, {"encoder": overview})
    monkeypatch.setattr(
        "serve.deployments.ray_backend.serve.status", lambda: ServeStatus(applications={"default": application})
    )
    (state,) = state_of_deployments("default")
    assert (state.name, state.status, state.replicas) == ("encoder", "HEALTHY", {"RUNNING": 2})
