"""What aliases name, and have named: one table for all versions of a catalog, replaced as a whole by every change."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field, replace

from embedder.hashing import content_id


@dataclass(frozen=True)
class AliasTable:
    """Aliases, and what is known of versions beside their files. Changes give a new table."""

    aliases: dict[str, str] = field(default_factory=dict)
    """Version by alias."""
    previous: dict[str, dict[str, int]] = field(default_factory=dict)
    """By alias the versions that it named before and when it left them (ns since 1970), the first one left first."""
    built: str = ""
    """The version that was built last."""
    leaving: Sequence[str] = ()
    """Versions whose files are being removed, so that no alias may name them any more."""

    @classmethod
    def parse(cls, content: bytes) -> AliasTable:
        """Read what `content` gives.

        Raises:
            ValueError, TypeError, KeyError, RecursionError: it is damaged.
        """
        raw = json.loads(content)
        fields = raw["table"]
        if raw["digest"] != content_id(fields):
            raise ValueError("its digest does not fit its content")
        return cls(**fields)

    def content(self) -> bytes:
        """The table as bytes, the same for the same table."""
        fields = asdict(self)
        return json.dumps({"table": fields, "digest": content_id(fields)}).encode()

    def pointed(self, alias: str, version: str, left_ns: int) -> AliasTable:
        """An alias names a version, and has left the one it named at that time."""
        previous, old = self.previous, self.aliases.get(alias, version)
        if old != version:
            left = {name: when for name, when in previous.get(alias, {}).items() if name not in (version, old)}
            # Taken out and put in last, because the order says which version was left first.
            previous = {**previous, alias: {**left, old: left_ns}}
        return replace(self, aliases={**self.aliases, alias: version}, previous=previous)

    def dropped(self, alias: str) -> AliasTable:
        """An alias is gone."""
        return replace(
            self,
            aliases={name: version for name, version in self.aliases.items() if name != alias},
            previous={name: left for name, left in self.previous.items() if name != alias},
        )

    def settled(self, alias: str, version: str, left_ns: int, successor: str) -> AliasTable:
        """Nothing of a version is needed any more that an alias left at that time, if the alias names the successor."""
        left = self.previous.get(alias, {})
        if left.get(version) != left_ns or self.aliases.get(alias) != successor:
            return self
        kept = {name: when for name, when in left.items() if name != version}
        return replace(self, previous={**self.previous, alias: kept})

    def among(self, versions: Collection[str]) -> AliasTable:
        """What aliases named before is only told of versions that are there."""
        previous = {
            alias: {name: when for name, when in left.items() if name in versions}
            for alias, left in self.previous.items()
        }
        return replace(self, previous=previous)
