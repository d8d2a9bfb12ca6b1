"""The encoder and the index behind Ray Serve's handles: deadlines, overload, calls made again when a replica dies."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from ray import serve
from ray.exceptions import NodeDiedError, ObjectLostError, RayActorError, RayError, RayTaskError, WorkerCrashedError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle, DeploymentResponse
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview
from typing_extensions import Unpack

from embedder.config.serve import ServeConfig
from embedder.index.opened import OpenIndex
from serve.backend import CALL_FORMAT, Encoded, Piece, R, Texts, Ts, may_take_long, time_left
from serve.deployments.coalescing import CALL_CHARACTERS, Coalescer, Limits, Outcome
from serve.deployments.node_metrics import gathered
from serve.deployments.replica_memory import pass_over_imported
from serve.http_errors import ApiError, overloaded, stopping
from serve.schemas.state_schemas import DeploymentState

DIED = (RayActorError, ObjectLostError, WorkerCrashedError, NodeDiedError)
"""The replica is gone, with what it was working on."""
PAUSE_S = 0.05
"""Before a call is made again; doubled each time."""
PATIENT_CHARACTERS = 8192
"""Of the texts of a call: such a one, and a longer one, is waited for until the deadline."""
LEAST_S = 2.0
"""With less time left a call that hangs is waited for until the deadline, not made again."""
DIED_PAUSE_S = 1.0
"""Before replicas are asked again to load a version; by then those that died are known to be dead."""
PREPARE_S = 600.0
"""Time for loading a version in every replica."""


class Deployments:
    """Backend of the service on a cluster."""

    def __init__(
        self,
        settings: ServeConfig,
        encoder: DeploymentHandle,
        slices: list[DeploymentHandle],
        retried: Callable[[], None],
    ) -> None:
        pass_over_imported()
        self._settings, self._encoder, self._parts, self._retried = settings, encoder, slices, retried
        self.num_slices = len(slices)
        calls = settings.target_ongoing_requests * settings.max_replicas
        limits = Limits.of(settings, calls, CALL_CHARACTERS * settings.batch_tokens)
        self._coalescer = Coalescer(self._encode, limits)
        self._waiting: set[asyncio.Future[Any]] = set()
        """The calls that are under way."""
        self._is_abandoned = False

    def refusal(self, num_bytes: int) -> ApiError | None:
        return self._coalescer.refusal(num_bytes)

    async def encode(self, version: str, texts: Texts, truncate: bool) -> Encoded:
        return await self._coalescer.encode(version, texts, truncate)

    async def _encode(self, version: str, pieces: list[Piece], truncate: bool) -> list[Outcome]:
        # A call full of texts may wait long for other such calls, and must not be made twice for that.
        much = sum(map(len, (text for piece in pieces for text in piece.texts))) > PATIENT_CHARACTERS
        outcomes: list[Outcome] = await self._call(
            lambda: self._encoder.encode.remote(version, pieces, truncate, call_format=CALL_FORMAT), patient=much
        )
        return outcomes

    async def call(
        self, part: int, version: str, method: Callable[[OpenIndex, Unpack[Ts]], R], *arguments: Unpack[Ts]
    ) -> R:
        """Call a method of INDEX_CALLS on the index of one slice."""
        handle = self._parts[part].call
        # The method travels by its name: pickled as a function it could be any code, and the replica runs only those it
        # knows.
        answer: R = await self._call(
            lambda: handle.remote(version, method.__name__, *arguments, call_format=CALL_FORMAT),
            patient=may_take_long(method, arguments),
        )
        return answer

    async def prepare(self, version: str) -> None:
        """Have every replica load a version and try it; those that start later load it when they are asked."""
        await prepare_everywhere([self._encoder, *self._parts], version, self._settings.retries)

    async def deployments(self) -> list[DeploymentState]:
        return await asyncio.to_thread(state_of_deployments, serve.get_replica_context().app_name)

    async def metrics(self) -> str:
        return await gathered(serve.get_replica_context().app_name)

    async def follow_deletion(self) -> None:
        """Give up what no replica will answer any more, once the application is deleted and those that had begun ended.

        A large request takes several calls; those that it has not made when its encoders are taken away would wait for
        one until the deadline, and the deletion for them.
        """
        if not self._waiting or self._is_abandoned:
            return
        application = await asyncio.to_thread(_application, serve.get_replica_context().app_name)
        if application.status != ApplicationStatus.DELETING:
            return
        names = {handle.deployment_name for handle in (self._encoder, *self._parts)}
        if any(state.replica_states for name, state in application.deployments.items() if name in names):
            return
        self._is_abandoned = True
        for waiting in self._waiting:
            waiting.cancel()

    async def prepare_here(self, version: str) -> None:
        """Nothing: versions are loaded by the replicas of other deployments."""

    async def check_health(self) -> None:
        """Nothing: those deployments have health checks of their own."""

    async def _call(self, call: Callable[[], DeploymentResponse[Any]], *, patient: bool = False) -> Any:  # noqa: ANN401 - whatever the replica answers
        """Make a call that may be repeated; on the death of its replica it goes to another one.

        One that hangs is made again after half of the time that is left, unless it is `patient`: the work may be long.

        Raises:
            ApiError: too many requests wait, or no replica could answer.
            TimeoutError: the deadline of the request has passed.
        """
        for attempt in range(self._settings.retries + 1):
            if attempt:
                self._retried()
                await asyncio.sleep(PAUSE_S * 2 ** (attempt - 1))
            # Anew for each attempt: the pause and the attempt before it have used up a part.
            left = time_left()
            is_last = patient or attempt == self._settings.retries or left < LEAST_S
            try:
                return await self._attempt(call(), left if is_last else left / 2)
            except TimeoutError:
                if is_last:
                    raise
            except (*DIED, ApiError) as error:
                # A replica that says 503 of itself is about to be replaced.
                if isinstance(error, ApiError) and (error.status != 503 or self._is_abandoned):
                    raise
        raise ApiError(503, "a part of the service died again and again; try again")

    async def _attempt(self, response: DeploymentResponse[Any], seconds: float) -> Any:  # noqa: ANN401
        if self._is_abandoned:
            raise stopping()
        waiting = asyncio.ensure_future(response)
        self._waiting.add(waiting)
        waiting.add_done_callback(self._waiting.discard)
        try:
            return await asyncio.wait_for(waiting, seconds)
        except (asyncio.CancelledError, asyncio.TimeoutError) as error:
            # Ray must be told, or the replica would work on for nobody.
            response.cancel()
            if self._is_abandoned:
                raise stopping() from error
            if isinstance(error, asyncio.CancelledError):
                raise
            raise TimeoutError from error
        except BackPressureError as error:
            raise overloaded() from error
        except RayServeException as error:
            raise ApiError(503, "a part of the service is not ready; try again") from error
        except RayTaskError as error:
            raise _cause(error) from error
        except DIED:  # a RayError too, but one after which the call is made again
            raise
        except RayError as error:
            raise ApiError(503, f"a part of the service failed ({type(error).__name__}); try again") from error


async def prepare_everywhere(handles: Sequence[DeploymentHandle], version: str, retries: int) -> None:
    """Have every replica of some deployments load a version and try it.

    Raises:
        ApiError: replicas died again and again.
        BundleError: it is missing or damaged.
    """
    for attempt in range(retries + 1):
        await asyncio.sleep(DIED_PAUSE_S * attempt)
        calls = [handle.broadcast("prepare", version) for handle in handles]
        try:
            await asyncio.gather(*(call.results_async(timeout_s=PREPARE_S) for call in calls))
        except DIED:
            continue
        except RayTaskError as error:
            raise _cause(error) from error
        return
    raise ApiError(503, "replicas died while they loaded the version; try again")


def state_of_deployments(application: str) -> list[DeploymentState]:
    """The replicas of every deployment of an application, by state."""
    states = _application(application).deployments
    return [
        DeploymentState(
            name=name,
            status=state.status.value,
            # By the values of the states, whatever Ray's annotation says.
            replicas=dict(state.replica_states),
        )
        for name, state in states.items()
    ]


def _application(name: str) -> ApplicationStatusOverview:
    return serve.status().applications[name]


def _cause(error: RayTaskError) -> BaseException:
    """The exception that the replica raised, if it was one."""
    # Ray wraps what is raised; where the cause could not travel, the wrapper is all there is.
    return error.cause if isinstance(error.cause, Exception) else error
