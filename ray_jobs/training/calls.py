"""Functions that are called in this process, or as tasks of the cluster: what hands on results need not know which."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from embedder.errors import EmbedderError


class Calls(Protocol):
    """A way of calling."""

    def start(self, function: Callable[..., Any], *arguments: Any, memory: float) -> Any:  # noqa: ANN401 - a reference
        """Call with arguments of which some may be results of `start` or `share`; `memory`: bytes it needs."""

    def share(self, value: Any) -> Any:  # noqa: ANN401 - a reference
        """A value that many calls are given."""

    def get(self, result: Any) -> Any:  # noqa: ANN401 - whatever the function returns
        """The value of a result."""

    def watch(self, label: str, results: Sequence[Any]) -> None:
        """Wait for results and show how many there are."""


class InDriver:
    """Calls at once; for few rows, and where there is no cluster yet."""

    def start(self, function: Callable[..., Any], *arguments: Any, memory: float) -> Any:  # noqa: ANN401
        return function(*arguments)

    def share(self, value: Any) -> Any:  # noqa: ANN401
        return value

    def get(self, result: Any) -> Any:  # noqa: ANN401
        return result

    def watch(self, label: str, results: Sequence[Any]) -> None:
        pass


class OnCluster:
    """Starts a task of one CPU; results stay in Ray's object store until they are asked for.

    Ray is imported by its methods, since the help of a command and a refused run file do without it.
    """

    def start(self, function: Callable[..., Any], *arguments: Any, memory: float) -> Any:  # noqa: ANN401
        import ray

        from ray_jobs.cluster.machines import memory_request

        asked = memory_request(memory, function.__name__)
        return ray.remote(num_cpus=1, memory=asked)(function).remote(*arguments)

    def share(self, value: Any) -> Any:  # noqa: ANN401
        import ray

        return ray.put(value)

    def get(self, result: Any) -> Any:  # noqa: ANN401
        import ray
        from ray.exceptions import RayTaskError

        try:
            return ray.get(result)
        except RayTaskError as error:
            cause: Any = error
            while isinstance(cause, RayTaskError):
                cause = cause.cause
            # Ray's own error has the traceback as its text, and the user needs the one line.
            if isinstance(cause, EmbedderError):
                raise cause from None
            raise

    def watch(self, label: str, results: Sequence[Any]) -> None:
        import ray

        from ray_jobs.cluster.metrics import track_progress

        with track_progress(label, len(results)) as counter:
            waiting = list(results)
            while waiting:
                done, waiting = ray.wait(waiting, fetch_local=False)
                counter.advance(len(done))
