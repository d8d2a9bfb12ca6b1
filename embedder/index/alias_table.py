"""What aliases name: one table for all versions of a catalog, replaced as a whole by every change."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace

from embedder.hashing import content_id


@dataclass(frozen=True)
class AliasTable:
    """Aliases, and what is known of versions beside their files. Changes give a new table."""

    aliases: dict[str, str] = field(default_factory=dict)
    """Version by alias."""
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
        # Of earlier versions of this program, which noted what aliases had named before.
        fields.pop("previous", None)
        return cls(**fields)

    def content(self) -> bytes:
        """The table as bytes, the same for the same table."""
        fields = asdict(self)
        return json.dumps({"table": fields, "digest": content_id(fields)}).encode()

    def pointed(self, alias: str, version: str) -> AliasTable:
        """An alias names a version."""
        return replace(self, aliases={**self.aliases, alias: version})

    def dropped(self, alias: str) -> AliasTable:
        """An alias is gone."""
        return replace(self, aliases={name: version for name, version in self.aliases.items() if name != alias})
