"""The service's metrics as Prometheus reads them, gathered from Ray's agents, one on each node."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import httpx
import ray

NODE_S = 2.0
"""Time for the answer of a node."""
OURS = "ray_embedder_"
"""What the names of our metrics begin with, after Ray has put its own word before them."""


async def gathered(application: str) -> str:
    """The metrics of one application on all nodes; a node that does not answer is named in a comment."""
    nodes = await asyncio.to_thread(ray.nodes)
    addresses = [_address(node) for node in nodes if node["Alive"] and node["MetricsExportPort"]]
    # Environment variables that name a proxy are for what lies beyond the cluster.
    async with httpx.AsyncClient(timeout=NODE_S, trust_env=False) as client:
        answers = await asyncio.gather(*(client.get(one) for one in addresses), return_exceptions=True)
    texts, silent = [], []
    for address, answer in zip(addresses, answers, strict=True):
        if isinstance(answer, httpx.Response) and answer.is_success:
            texts.append(answer.text)
        elif isinstance(answer, httpx.Response | httpx.HTTPError):
            silent.append(f"# {address} did not answer\n")
        else:
            raise answer
    return of_application(texts, application) + "".join(silent)


def of_application(texts: Sequence[str], application: str) -> str:
    """Our metrics out of what nodes answer, without those of other applications; each name once, as the format asks."""
    own = f'application="{application}"'
    heads: dict[str, dict[str, None]] = {}
    samples: dict[str, list[str]] = {}
    for text in texts:
        name = ""
        for line in text.splitlines():
            if line.startswith(("# HELP ", "# TYPE ")):
                name = line.split(" ")[2]
                heads.setdefault(name, {})[line] = None
            elif line.startswith(OURS) and ("application=" not in line or own in line):
                samples.setdefault(name, []).append(line)
    return "".join(f"{line}\n" for name in sorted(samples) for line in [*heads.get(name, {}), *samples[name]])


def _address(node: dict[str, Any]) -> str:
    host = node["NodeManagerAddress"]
    return f"http://{f'[{host}]' if ':' in host else host}:{node['MetricsExportPort']}/metrics"
