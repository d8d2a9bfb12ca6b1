"""Settings of the command `ray_jobs.submit`."""

from __future__ import annotations

from pydantic import Field, field_validator

from embedder.config.paths import Section
from embedder.credentials import is_secret


class SubmitConfig(Section):
    """The arguments that `python -m ray_jobs.submit` gives to `ray job submit`."""

    address: str = Field(default="http://127.0.0.1:8265", pattern=r"^https?://[^@\s]+$")
    """Address of Ray's Jobs API. `ray dashboard cluster.yaml` forwards that of a cluster to the default port."""
    entrypoint_cpus: float = Field(default=0, ge=0)
    """Logical CPUs that the driver holds besides those of its tasks. With 0 it runs on the head. The default is 0
    because a driver mostly waits, and because on a cluster whose head has no CPUs any other value would never be
    scheduled."""
    resources: dict[str, float] = Field(default={})
    """Custom resources of the node on which the driver must run."""
    labels: dict[str, str] = Field(default={})
    """Labels of the node on which the driver must run, such as `market: on-demand`: a driver that dies with a spot node
    must be started again."""
    excludes: list[str] = Field(
        default=[".git", ".venv", ".cache", "runs", "tests", "benchmarks", "docs", "*.egg-info"]
    )
    """Patterns, as in .gitignore, of files that are not uploaded. Files that .gitignore and .rayignore name are left
    out as well, and so are files whose names are those of credentials (`.env`, `keys.txt`, `*.pem`). A file that holds
    one, and more than 100 MiB together, are refused."""
    env: dict[str, str] = Field(default={})
    """Environment variables of the driver and its workers. The dashboard shows them, so what looks like a credential by
    its name (`HF_AUTH`, `DB_PASSWD`) or its value is refused."""

    @field_validator("env")
    @classmethod
    def no_secrets(cls, value: dict[str, str]) -> dict[str, str]:
        """Refuse what looks like a secret."""
        for name, given in value.items():
            if is_secret(name, given):
                raise ValueError(
                    f"{name} looks like a secret, which the dashboard would show; give it to the nodes by a role, a "
                    "mounted file or their own environment"
                )
        return value
