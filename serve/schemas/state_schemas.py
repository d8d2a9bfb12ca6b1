"""Health, replicas and errors on the wire."""

from __future__ import annotations

from typing import Literal

from serve.schemas.strict import Strict


class TeiError(Strict):
    """Body of every answer of TEI's routes that is not 200."""

    error: str
    error_type: str


class Health(Strict):
    """Answer of GET /ready and /live."""

    status: Literal["ok"] = "ok"


class IndexHealth(Health):
    """Answer of GET /health."""

    behind_s: float
    """Seconds since the replicas that answered knew all that had been written: below 2 unless the store is not
    reachable, when searches go on with what was known then."""


class DeploymentState(Strict):
    """A part of the service."""

    name: str
    status: str
    """As Ray calls it: HEALTHY, UPDATING, UPSCALING, DOWNSCALING, UNHEALTHY, DEPLOY_FAILED."""
    replicas: dict[str, int]
    """How many there are by their state: RUNNING, STARTING, STOPPING and others of Ray's."""


class ServiceState(Strict):
    """Answer of GET /v1/state."""

    data: list[DeploymentState]


class ErrorDetail(Strict):
    """The reason of a refusal, and the field it is about."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorResponse(Strict):
    """Body of every answer that is not 200."""

    error: ErrorDetail
