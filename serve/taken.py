"""Refusals of a start on a port, name or route that is taken: Ray would replace a running service without a word."""

from __future__ import annotations

import http.client
import json

from embedder.errors import ConfigError

LOOK_S = 0.5
"""For asking whoever listens; it is on this machine."""
ROUTES = "/-/routes"
"""Where Ray Serve tells the name of the application at each route."""


def refuse_taken_port(host: str, port: int, name: str, route_prefix: str) -> None:
    """Look at who listens there, in less than a second and without Ray.

    Raises:
        ConfigError: it is another program, or a Ray Serve where the name or the route is taken.
    """
    reached = "127.0.0.1" if host in {"0.0.0.0", ""} else host
    connection = http.client.HTTPConnection(reached, port, timeout=LOOK_S)
    try:
        connection.connect()
    except OSError:
        return
    try:
        connection.request("GET", ROUTES)
        applications = json.loads(connection.getresponse().read(65_536))
    except (OSError, http.client.HTTPException, ValueError):
        applications = None
    finally:
        connection.close()
    if not isinstance(applications, dict):
        raise ConfigError(f"port {port} of {host} is taken by another program; choose another one by --port")
    refuse_taken_name({str(running): str(route) for route, running in applications.items()}, name, route_prefix)


def refuse_taken_name(applications: dict[str, str | None], name: str, route_prefix: str | None) -> None:
    """Refuse a name or a route that a running application has; `applications` has the route of each name.

    Raises:
        ConfigError: with what to choose.
    """
    if name in applications:
        where = applications[name] or "no route"
        raise ConfigError(
            f"a service of the name {name!r} is running on this Ray (at {where}); start this one beside it by another "
            "--name and --route-prefix, or stop that one first"
        )
    other = next((running for running, route in applications.items() if route == route_prefix), None)
    if other is not None:
        raise ConfigError(
            f"the service {other!r} is running at {route_prefix} of this Ray; give this one another --route-prefix, "
            "such as /second, or stop that one first"
        )
