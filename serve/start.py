"""Start the service of a run on this machine, and stop it at SIGTERM or Ctrl-C without cutting a request off.

    python -m serve.start --config configs/demo.yaml
    python -m serve.start --config other.yaml --name other --route-prefix /other

It joins the Ray that RAY_ADDRESS names or that runs on this machine; else it starts one, which ends with it, with the
switches of `ray_switches`. A port, name or route that is taken is refused.
"""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from embedder.cli.launch import SERVICE_URL
from embedder.config.load import load_run, run_file_parser
from embedder.config.run import RunConfig
from embedder.console import console, exit_on_error
from embedder.errors import ConfigError
from embedder.interrupt import interrupt_as_usual
from embedder.run.gpu_shares import refuse_without_driver, stage_shares
from embedder.run.ray_start import starting_ray
from serve.ray_switches import set_switches
from serve.taken import refuse_missing_version, refuse_taken_name, refuse_taken_port

if TYPE_CHECKING:
    from ray.serve import Application

LAST_S = 5.0
"""Beyond the time that a request may take."""


@dataclass(frozen=True)
class Place:
    """Host, port, name and route of the service."""

    host: str
    port: int
    name: str
    prefix: str

    @property
    def url(self) -> str:
        """The address for clients on this machine."""
        host = "127.0.0.1" if self.host in {"0.0.0.0", ""} else self.host
        return f"http://{host}:{self.port}{self.prefix.rstrip('/')}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until a signal; exit status 2 and one line for an error the user can fix."""
    parser = run_file_parser("serve.start", __doc__ or "")
    parser.add_argument("--host", default="127.0.0.1", help="where Ray Serve listens, unless it runs already")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--name", default="embedder", help="of the application, if several services run on one Ray")
    parser.add_argument("--route-prefix", default="/", help="what all its paths begin with")
    options = parser.parse_args(arguments)
    place = Place(options.host, options.port, options.name, "/" + options.route_prefix.strip("/"))
    # SIGTERM as Ctrl-C: whatever is at work is left by the same way.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    out = console()
    with exit_on_error():
        # First of all, and before Ray is imported, so that it takes no second.
        refuse_taken_port(place.host, place.port, place.name, place.prefix)
        config = load_run(options.config, options.set)
        refuse_missing_version(config)
        with tempfile.TemporaryDirectory(prefix="haproxy-", ignore_cleanup_errors=True) as folder:
            if _starts_ray():
                # Before torch is imported and Ray started.
                refuse_without_driver(stage_shares("serve", config))
                set_switches(os.environ, Path(folder))
            from serve.app import build_checked

            application = build_checked(config)
            is_own_serve = _connect(place, config, out)
            _serve(application, place, config, out, is_own_serve=is_own_serve)


def _starts_ray() -> bool:
    """Whether there is no Ray to join. Ray Serve is not imported: it reads its switches then."""
    import ray
    from ray._private.services import canonicalize_bootstrap_address

    return not ray.is_initialized() and canonicalize_bootstrap_address(os.environ.get("RAY_ADDRESS")) is None


def _connect(place: Place, config: RunConfig, out: Console) -> bool:
    """Connect to Ray and start Serve; returns whether Serve was not running before.

    Raises:
        ConfigError: Serve listens elsewhere, or the name or the route is taken.
        ClusterError: Ray does not start.
        DeviceError: the encoder's replicas ask for GPUs that this machine does not have, or that cannot be used.
    """
    import ray
    from ray import serve
    from ray.serve.context import _get_global_client

    from serve.replica_gpus import check_replica_gpus

    is_own_ray = _starts_ray()
    if not ray.is_initialized():
        # The logs of the replicas stay in Ray's files: they have a line for each request.
        with starting_ray():
            ray.init(namespace="serve", log_to_driver=False)
    # Anew, because Ray's own handler at SIGTERM would end this process at once.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # A Ray that was there before may be a cluster that grows.
    check_replica_gpus(config, out, can_grow=not is_own_ray)
    running = _get_global_client(raise_if_no_controller_running=False)
    if running is not None:
        known = running.http_config
        if int(known.port) != place.port:
            raise ConfigError(f"Serve runs on this Ray at port {known.port}; give --port {known.port}")
        # Of the controller itself, because the public status does not tell the routes.
        applications = running.get_serve_details()["applications"]
        routes = {app: details["route_prefix"] for app, details in applications.items()}
        refuse_taken_name(routes, place.name, place.prefix)
    # Ray's deadline is later than ours, which answers in our own shape.
    serve.start(http_options={"host": place.host, "port": place.port, "request_timeout_s": 2 * config.serve.timeout_s})
    return running is None


def _serve(application: Application, place: Place, config: RunConfig, out: Console, *, is_own_serve: bool) -> None:
    """Deploy the application, wait for a signal, and stop it; a second signal does not wait for requests."""
    import ray
    from ray import serve

    try:
        serve.run(application, name=place.name, route_prefix=place.prefix)
        # From now on there are requests to be answered before the end.
        interrupt_as_usual()
        option = "" if place.url == SERVICE_URL else f" --url {place.url}"
        out.print(f"{place.name} is ready at {place.url}; stop it by Ctrl-C or SIGTERM", markup=False)
        out.print(f"next, in another terminal: llm-embedder ask{option} QUERY", markup=False)
        while True:
            signal.pause()
    except KeyboardInterrupt:
        out.print("stopping: what was asked is answered first", markup=False)
        _close(place.name, config.serve.timeout_s + LAST_S, out)
    finally:
        serve.delete(place.name)
        if is_own_serve and not serve.status().applications:
            serve.shutdown()
        ray.shutdown()


def _close(name: str, seconds: float, out: Console) -> None:
    """Have every ingress refuse what begins and answer what has begun."""
    from ray.exceptions import RayError
    from ray.serve import get_app_handle
    from ray.serve.exceptions import RayServeException

    try:
        handle = get_app_handle(name)
        # Ray's switch for throughput would have it work in an event loop of this thread, where there is none.
        handle._init(_run_router_in_separate_loop=True)
        handle.broadcast("close").results(timeout_s=seconds)
    except (RayError, RayServeException, TimeoutError) as error:
        out.print(f"not every request was answered ({type(error).__name__})", markup=False)


if __name__ == "__main__":
    main()
