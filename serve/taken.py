"""Refusals of a start before Ray is imported, which takes seconds: what is taken, and a version that is not there.

Ray would replace a running service of the same name or route without a word.
"""

from __future__ import annotations

import http.client
import json

from embedder.config.run import RunConfig
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
    try:
        connection = http.client.HTTPConnection(reached, port, timeout=LOOK_S)
        connection.connect()
    except OSError:
        return
    except (UnicodeError, http.client.InvalidURL) as error:
        raise ConfigError(f"--host {host!r}: no name or address of a host") from error
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


def refuse_missing_version(config: RunConfig) -> None:
    """Refuse a run without an index to serve; the files of the version are hashed later.

    Raises:
        ConfigError: the run has no version that its alias names.
        BundleError: the version is damaged, or of another version of this program.
    """
    # FAISS comes with it, which a port that is taken need not wait for.
    from embedder.index.bundle import read_manifest
    from embedder.index.catalog import Catalog

    if config.serve.bundle is not None:
        read_manifest(config.serve.bundle)
        return
    catalog = Catalog(config.paths.indexes)
    read_manifest(catalog.bundle(catalog.resolve(config.index.alias)))


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
