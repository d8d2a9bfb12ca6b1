"""Settings of `ray_jobs.submit`: what `ray job submit` is told."""

from __future__ import annotations

import re

from pydantic import Field, field_validator

from embedder.config.paths import Section

SECRET_NAME = re.compile(r"(?i)key|token|secret|password|credential")
"""Names of environment variables that the dashboard would show to everybody who may look at a job."""


class SubmitConfig(Section):
    """What `python -m ray_jobs.submit` tells `ray job submit`."""

    address: str = Field(default="http://127.0.0.1:8265", pattern=r"^https?://[^@\s]+$")
    """The Jobs API; `ray dashboard cluster.yaml` brings that of a cluster to this port."""
    entrypoint_cpus: float = Field(default=0, ge=0)
    """Logical CPUs that the driver holds besides those of its tasks. With 0 it runs on the head."""
    resources: dict[str, float] = Field(default={})
    """Custom resources of the node that the driver must run on."""
    labels: dict[str, str] = Field(default={})
    """Labels of that node, such as `market: on-demand`: a driver that dies with a spot node must be started again."""
    excludes: list[str] = Field(
        default=[".git", ".venv", ".cache", "runs", "tests", "benchmarks", "docs", "*.egg-info"]
    )
    """Patterns of .gitignore for what is not uploaded; what .gitignore and .rayignore name is left out as well."""
    env: dict[str, str] = Field(default={})
    """Environment of the driver and its workers; the dashboard shows it, so no secrets."""

    @field_validator("env")
    @classmethod
    def no_secrets(cls, value: dict[str, str]) -> dict[str, str]:
        """Refuse what looks like a secret."""
        for name in value:
            if SECRET_NAME.search(name):
                raise ValueError(
                    f"{name} looks like a secret, which the dashboard would show; give it to the nodes by a role, a "
                    "mounted file or their own environment"
                )
        return value
