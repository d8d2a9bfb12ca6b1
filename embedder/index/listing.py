"""The versions of an index as a user sees them: their documents, and the aliases that name them."""

from __future__ import annotations

from dataclasses import dataclass

from embedder.index.bundle import read_manifest
from embedder.index.catalog import Catalog


@dataclass(frozen=True)
class ListedVersion:
    """A version of an index."""

    version: str
    aliases: list[str]
    documents: dict[str, int]
    """By task; without tasks that have none."""
    shards: int
    model: str
    """Identity of its encoder."""

    @property
    def size(self) -> str:
        """The version's size, for the user."""
        counts = ", ".join(f"{count:,} of {task}" for task, count in self.documents.items())
        return f"{counts or 'no documents'} in {self.shards} shards, model {self.model}"

    @property
    def line(self) -> str:
        """All of it, for the user."""
        return f"{self.version}: {self.size}; served as {', '.join(self.aliases) or 'nothing'}"


def list_versions(catalog: Catalog) -> list[ListedVersion]:
    """All versions, by name.

    Raises:
        BundleError: one is damaged, or of another version of this program.
    """
    return [list_version(catalog, version) for version in catalog.versions()]


def list_version(catalog: Catalog, version: str) -> ListedVersion:
    """One version.

    Raises:
        BundleError: it is damaged, or of another version of this program.
    """
    manifest = read_manifest(catalog.bundle(version))
    aliases = sorted(alias for alias, target in catalog.aliases().items() if target == version)
    documents = {task: count for task, count in sorted(manifest.collections.items()) if count}
    return ListedVersion(version, aliases, documents, manifest.num_shards, manifest.model_version)
