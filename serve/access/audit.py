"""The audit: a line for every write, every call of an admin, and every refusal by role or scope.

The lines are in the JSON log of the service (message "audit"), and in `serve.audit_file` if it is set. They hold the
label of a key, never the key or its hash, and no text.
"""

from __future__ import annotations

import json
import logging
import os
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from serve.access.key_scopes import UNLIMITED, KeyScope
from serve.access.keys import ApiKey, Role

logger = logging.getLogger("ray.serve")

CALLER = "llm_embedder.caller"
"""Where the guard leaves the caller in the scope of a request."""
LONGEST = 200
"""Characters of a name that a client chose."""


@dataclass
class Caller:
    """Who asks, and what the request turned out to be about."""

    key: ApiKey | None = None
    needed: Role | None = None
    """The role that the route asks for; None: the route is for everybody."""
    index: str | None = None
    task: str | None = None
    version: str | None = None
    """Of an alias that is moved."""
    documents: int | None = None
    refused: str | None = None
    """What the key has not: role, index, task, where; or that it has expired."""

    @property
    def scope(self) -> KeyScope:
        return UNLIMITED if self.key is None else self.key.scope


class AuditLog:
    """Writes the lines to the log of the service, and to a file if there is one."""

    def __init__(self, path: Path | None) -> None:
        self._path, self._is_broken = path, False

    def note(self, caller: Caller, method: str, route: str, status: int) -> None:
        """Write a line; a file that cannot be written is told in the log, once, and refuses no request."""
        line = {
            "key": caller.key.name if caller.key else None,
            "role": caller.key.role if caller.key else None,
            "method": method,
            "http_route": route,
            "index": _cut(caller.index),
            "task": _cut(caller.task),
            "version": _cut(caller.version),
            "documents": caller.documents,
            "refused": caller.refused,
            "status": status,
        }
        logger.info("audit", extra=line)
        if self._path is None:
            return
        written = json.dumps({"time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"), **line}) + "\n"
        try:
            # Opened each time, so that the file may be moved away, and written by one call, so that lines of several
            # ingresses do not mix.
            file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                os.write(file, written.encode("ascii"))
            finally:
                os.close(file)
            self._is_broken = False
        except OSError as error:
            if not self._is_broken:
                logger.error("serve.audit_file %s cannot be written: %s", self._path, error.strerror)
            self._is_broken = True


def _cut(name: str | None) -> str | None:
    return None if name is None else name[:LONGEST]
