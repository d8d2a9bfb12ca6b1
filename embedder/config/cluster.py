"""Settings of the Ray that jobs and the service run on."""

from __future__ import annotations

from embedder.config.paths import Section


class ClusterConfig(Section):
    """What jobs and the service ask of Ray before they start on it."""

    allow_no_authentication: bool = False
    """Run on a Ray that asks for no token (`RAY_AUTH_MODE=token`). Whoever reaches its ports can then run code on every
    node, so only where the network keeps everybody else out."""
