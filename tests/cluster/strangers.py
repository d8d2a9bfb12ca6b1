"""Calls of a stranger: every method that Ray has, with a pickle, and every request that acts, without a token."""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Iterable
from pathlib import Path

import psutil
import ray
from ray.serve.generated.serve_pb2 import ASGIRequest

from serve.ports import NO_ANSWER, OPEN, OURS, SAFE_CALLS, Port, answer_of, ask, call, open_ports

ROOT = Path(__file__).parents[2]
TOUCHED = "code-of-a-stranger"
OBJECTS = {f"/ray.rpc.ObjectManagerService/{name}" for name in ("Push", "Pull", "FreeObjects")}
ACTING = {
    "POST": [
        *("/api/jobs/", "/api/job_agent/jobs/", "/api/packages/gcs/p.zip", "/api/v1/submit_job", "/api/actors/kill"),
        *("/get_or_create_runtime_env", "/delete_runtime_env_if_possible", "/get_runtime_envs_info"),
    ],
    "PUT": ["/api/serve/applications/", "/api/packages/gcs/p.zip"],
    "DELETE": ["/api/serve/applications/", "/api/jobs/j"],
    "GET": [
        *("/worker/traceback?pid=1", "/task/cpu_profile", "/api/v0/actors", "/api/v0/logs/file?filename=raylet.out"),
        *("/logical/actors", "/nodes?view=summary", "/api/snapshot", "/api/cluster_status", "/events"),
    ],
}


class _Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mknod, (str(self.marker),)


def all_methods() -> list[str]:
    """Every gRPC method of this Ray that Python knows, and those of the object manager, which is C++ alone."""
    methods = set(OBJECTS)
    for path in Path(ray.__file__).parent.glob("*/generated/*_pb2_grpc.py"):
        methods |= set(re.findall(r"'(/[\w.]+/\w+)'", path.read_text(encoding="utf-8")))
    assert methods >= set(SAFE_CALLS) and len(methods) > 150
    return sorted(methods)


def ports_of_this_ray(pid: int | None = None) -> list[Port]:
    """Those of a process (of this one) and of all that it has started, such as a cluster and its workers."""
    own = psutil.Process(pid)
    return open_ports([own.pid, *(child.pid for child in own.children(recursive=True))])


def documented_ports(title: str) -> set[tuple[str, ...]]:
    """The rows of one table of docs/security.md."""
    text = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    lines = text.partition(f"{title}:\n\n")[2].partition("\n\n")[0].splitlines()
    return {tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines[2:]}


def what_strangers_can_do(ports: Iterable[Port], folder: Path) -> list[str]:
    """A line for each call that was taken, and for each file that a payload made; none where all is well."""
    marker, methods, wrong = folder / TOUCHED, all_methods(), []
    payload = pickle.dumps(_Payload(marker))
    # Other calls carry nothing: what is no message of theirs is refused before anybody asks for the token.
    of_replica = [method for method in methods if method.startswith("/ray.serve.ASGIService/")]
    pickled = ASGIRequest(pickled_request_metadata=payload, request_args=payload).SerializeToString()
    for port in ports:
        answer = answer_of(port)
        wrong += [f"{port}: {answer}"] if OPEN in answer else []
        if answer == OURS:
            continue
        if not ask(port, ("/",)):
            ended = call(port, methods) + call(port, of_replica, pickled)
            taken = ended.keys() - NO_ANSWER - {"UNAUTHENTICATED", "UNIMPLEMENTED"}
            wrong += [f"{port}: some method ended with {sorted(taken)}"] if taken else []
            continue
        for method, paths in ACTING.items():
            for path, got in ask(port, paths, method, payload).items():
                is_numbers = got.status_code == 200 and "# TYPE" in got.text
                # HAProxy answers 500 where nothing stands behind a page of its own.
                refusals = {401, 403, 404, 405} | ({500, 503} if port.role == "HAProxy" else set())
                if not is_numbers and got.status_code not in refusals:
                    wrong.append(f"{port}: {method} {path} {got.status_code} {got.text[:80]}")
    return [*wrong, *([f"{marker} is there"] if marker.exists() else [])]
