"""API keys with roles, and the role that each route asks for.

    # one key a line, its role before it; a key alone may read
    read  9f2c...
    write 41ab...
    admin c07d...

Several keys of a role let one be replaced without a gap. The file is read again when it changes.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
from pathlib import Path
from typing import Literal, get_args

from embedder.errors import ConfigError
from serve.load_shedding import ENCODING

logger = logging.getLogger("ray.serve")

Role = Literal["read", "write", "admin"]
ROLES: tuple[Role, ...] = get_args(Role)
"""Each may do what those before it may."""

PUBLIC = {"/health", "/ready", "/live", "/", "/docs", "/favicon.ico"}
"""Routes that ask for no key, to be read alone."""
READING = ENCODING | {"/v1/search"}
"""Routes that are asked by POST and change nothing; with all below `/v1/retrieve/`."""


def needed_role(method: str, path: str) -> Role | None:
    """The role that a request needs; a route that no rule knows needs the highest."""
    if method in {"GET", "HEAD"}:
        is_public = path in PUBLIC or path.startswith("/static/")
        return None if is_public else "read"
    if method == "POST" and (path in READING or path.startswith("/v1/retrieve/")):
        return "read"
    if method == "POST" and path.startswith("/v1/indexes/"):
        return "write"
    return "admin"


def read_keys(path: Path) -> dict[bytes, Role]:
    """Role by SHA-256 of the key.

    Raises:
        ConfigError: the file is missing or empty, or a line is not a role and a key.
    """
    remedy = "write one key a line, with its role before it: `read KEY`, `write KEY`, `admin KEY`"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"serve.api_keys_file {path}: not readable ({type(error).__name__}); {remedy}") from error
    keys: dict[bytes, Role] = {}
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        role = next((known for known in ROLES if known == words[0]), None)
        if len(words) > 2 or (len(words) == 2) != (role is not None):
            raise ConfigError(f"serve.api_keys_file {path}, line {number}: {remedy}")
        keys[_hashed(words[-1])] = role or "read"
    if not keys:
        raise ConfigError(f"serve.api_keys_file {path}: holds no key; {remedy}")
    return keys


class Keys:
    """The keys of a file, as they are at the moment."""

    def __init__(self, path: Path) -> None:
        """Read the keys.

        Raises:
            ConfigError: there are none in the file.
        """
        self._path, self._keys, self._seen = path, read_keys(path), _identity(path)

    def role(self, header: str) -> Role | None:
        """The role of `Bearer KEY`, or None. Takes as long for every key: each one is compared, in constant time."""
        self._refresh()
        given = _hashed(header[7:].strip()) if header[:7].lower() == "bearer " else b""
        # All keys, without a stop at the first that fits: the time must not tell which one it was.
        fitting = [role for key, role in self._keys.items() if hmac.compare_digest(given, key)]
        return max(fitting, key=ROLES.index, default=None)

    def _refresh(self) -> None:
        """Read the file again if it has changed; what cannot be read leaves the old keys as they are."""
        if (seen := _identity(self._path)) == self._seen:
            return
        # Noted before it is read, so that a broken file is read and reported once and not at every request.
        self._seen = seen
        try:
            self._keys = read_keys(self._path)
            logger.info("API keys were read again", extra={"keys": len(self._keys)})
        except ConfigError as error:
            logger.error("the old API keys stay: %s", error)


def _identity(path: Path) -> tuple[int, int, int] | None:
    """Changes with the file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return (status.st_mtime_ns, status.st_size, status.st_ino)


def _hashed(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
