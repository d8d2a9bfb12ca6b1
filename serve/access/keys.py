"""API keys: who holds which, in which role, within which scope. And the role that each route asks for.

    # ROLE [name=LABEL] [index=ALIAS ...] [task=TASK ...] [where.FIELD=VALUE ...] [expires=DATE] sha256:HASH
    read  name=search-a index=live task=qa where.tenant=a expires=2027-01-01 sha256:9f2c...
    admin name=boss sha256:41ab...

`python -m serve.new_key` makes a key and its line. The file is read again when it changes; while it cannot be read as a
whole, no key is valid. The hash stands last, so that a line that was cut short is no key.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import stat
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import date, datetime, timezone
from pathlib import Path
from typing import Literal, get_args

from embedder.data.metadata import ID_FIELD
from embedder.errors import ConfigError
from serve.access.key_scopes import MAX_OWNER, UNLIMITED, WORD, KeyScope
from serve.middleware.incoming import ENCODING

logger = logging.getLogger("ray.serve")

Role = Literal["read", "write", "admin"]
ROLES: tuple[Role, ...] = get_args(Role)
"""Each may do what those before it may."""

PUBLIC = {"/health", "/ready", "/live", "/", "/docs", "/favicon.ico"}
"""Routes that ask for no key, to be read alone."""
READING = ENCODING | {"/v1/search", "/v1/search/batch"}
"""Routes that are asked by POST and change nothing; with all below `/v1/retrieve/`."""
READING_DOCUMENTS = re.compile(r"/v1/indexes/[^/]+/documents/(get|count|list)")

HASHED = "sha256:"
LEAST_LENGTH = 16
"""Characters of a key."""
OPTIONS = ("name=", "index=", "task=", "where.", "expires=", HASHED)
"""What the words of a line with a hash begin with, and no key that stands in the file as it is."""
REMEDY = "make keys with `python -m serve.new_key`, one line each, and replace the file as a whole"


def needed_role(method: str, path: str) -> Role | None:
    """The role that a request needs; a route that no rule knows needs the highest."""
    if method in {"GET", "HEAD"}:
        is_public = path in PUBLIC or path.startswith("/static/")
        return None if is_public else "read"
    if method == "POST" and (path in READING or path.startswith("/v1/retrieve/") or READING_DOCUMENTS.fullmatch(path)):
        return "read"
    if method == "POST" and path.startswith("/v1/indexes/"):
        return "write"
    return "admin"


@dataclass(frozen=True)
class ApiKey:
    """One line of the file."""

    name: str
    """A label for the log, which is no secret."""
    role: Role
    hashed: bytes = field(repr=False)
    scope: KeyScope = UNLIMITED
    expires: date | None = None
    """The day, in UTC, from whose beginning on it is refused."""
    is_raw: bool = False
    """True: the file holds the key itself, not its hash."""

    @property
    def has_expired(self) -> bool:
        return self.expires is not None and datetime.fromtimestamp(time.time(), timezone.utc).date() >= self.expires


class Keys:
    """The keys of a file, as they are at the moment."""

    def __init__(self, path: Path) -> None:
        """Read the keys.

        Raises:
            ConfigError: there are none in the file.
        """
        self._path, self._seen = path, _identity(path)
        self._keys, self._problem = read_keys(path), ""

    def find(self, header: str) -> ApiKey | None:
        """The key of `Bearer KEY`, which may have expired. Takes as long for every key: each is compared as a whole."""
        self._refresh()
        text = header[7:].strip()
        # Short ones never: the hash of nothing is soon written down by a command whose variable is empty.
        is_key = header[:7].lower() == "bearer " and len(text) >= LEAST_LENGTH
        given = hashed_key(text) if is_key else b""
        # All keys, without a stop at the one that fits: the time must not tell which one it was.
        fitting = [key for key in self._keys if hmac.compare_digest(given, key.hashed)]
        return fitting[0] if fitting else None

    def _refresh(self) -> None:
        """Read the file again if it has changed; while it cannot be read no key is valid, as any may be revoked."""
        seen = _identity(self._path)
        if seen == self._seen and not self._problem:
            return
        # Noted before it is read: what changes meanwhile is seen by the next request.
        self._seen = seen
        try:
            self._keys, problem = read_keys(self._path), ""
            logger.info("API keys were read again", extra={"keys": len(self._keys)})
        except ConfigError as error:
            self._keys, problem = [], str(error)
            # Said once, though every request looks again whether it can be read.
            if problem != self._problem:
                logger.error("no API key is valid until this is put right: %s", problem)
        self._problem = problem


def read_keys(path: Path) -> list[ApiKey]:
    """The keys of a file, expired ones too.

    Raises:
        ConfigError: the file is missing or writable by everybody, or what stands in it is refused.
    """
    where = f"serve.api_keys_file {path}"
    try:
        mode, text = path.stat().st_mode, path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{where}: not readable ({type(error).__name__}); {REMEDY}") from error
    if mode & stat.S_IWOTH:
        raise ConfigError(f"{where}: everybody can write to it; run `chmod 600 {path}`, and look who has")
    keys = parsed_file(text, where)
    _warn(path, mode, keys)
    return keys


def parsed_file(text: str, where: str) -> list[ApiKey]:
    """The keys of what stands in a file; `where` it does begins every message.

    Raises:
        ConfigError: it is empty or half written, or a line is no key.
    """
    if text and not text.endswith("\n"):
        raise ConfigError(f"{where}: its last line has no end, as of a file that is half written; {REMEDY}")
    keys = []
    for number, line in enumerate(text.split("\n"), start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        try:
            keys.append(parsed_line(words, number))
        except ValueError as error:
            raise ConfigError(f"{where}, line {number}: {error}; {REMEDY}") from error
    if not keys:
        raise ConfigError(f"{where}: holds no key; {REMEDY}")
    for what, counted in (("name", Counter(key.name for key in keys)), ("key", Counter(key.hashed for key in keys))):
        if max(counted.values()) > 1:
            raise ConfigError(f"{where}: two lines have the same {what}; each needs its own; {REMEDY}")
    return keys


def hashed_key(key: str) -> bytes:
    """Its SHA-256; a slow hash would add nothing, since keys are random and not chosen by people."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def parsed_line(words: list[str], number: int) -> ApiKey:
    """The key of a line; no message repeats what stands there, since it may be a key."""
    role = next((known for known in ROLES if known == words[0]), None)
    if words == [role]:
        raise ValueError("a role without a key")
    *options, last = words[1:] if role else words
    if last.startswith(HASHED) and role is not None:
        return _hashed_line(role, options, last.removeprefix(HASHED), number)
    if options or last.lower().startswith(OPTIONS):
        raise ValueError(f"not a role ({', '.join(ROLES)}), options and {HASHED} with 64 hexadecimal digits")
    if len(last) < LEAST_LENGTH or not (last.isascii() and last.isprintable()):
        raise ValueError(f"a key has at least {LEAST_LENGTH} printable characters")
    return ApiKey(f"line-{number}", role or "read", hashed_key(last), is_raw=True)


def _hashed_line(role: Role, options: list[str], digest: str, number: int) -> ApiKey:
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise ValueError(f"{HASHED} has not 64 hexadecimal digits after it")
    named: dict[str, list[str]] = {"name": [], "index": [], "task": [], "expires": []}
    where: dict[str, str] = {}
    for option in options:
        name, _, value = option.partition("=")
        is_field = name.startswith("where.")
        if not WORD.fullmatch(value) or not WORD.fullmatch(name) or not (is_field or name in named):
            raise ValueError("options are name=, index=, task=, where.FIELD= and expires=, each with a word after it")
        if name == f"where.{ID_FIELD}":
            # Filters on it fit the ids of documents too, which any tenant may choose.
            raise ValueError("where.id would fit the ids of documents too; use another field")
        if is_field and name.removeprefix("where.") not in {"", *where}:
            where[name.removeprefix("where.")] = value
        elif is_field or (name in {"name", "expires"} and named[name]):
            raise ValueError("an option that is given once only is given twice, or without a field")
        else:
            named[name].append(value)
    scope = KeyScope(frozenset(named["index"]) or None, frozenset(named["task"]) or None, where)
    if len(scope.owner) > MAX_OWNER:
        raise ValueError(f"where. has more than {MAX_OWNER} characters in all")
    if role == "admin" and scope.is_limited:
        # An alias can be pointed at any version, and so at documents beyond any scope.
        raise ValueError("an admin moves aliases to any version, and so has no index=, task= or where.")
    expires = _day(named["expires"][0]) if named["expires"] else None
    return ApiKey((named["name"] or [f"line-{number}"])[0], role, bytes.fromhex(digest), scope, expires)


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        # Python's own message repeats the text, which may be anything that was written into the file.
        raise ValueError("expires= is no day of the calendar, such as 2027-01-31") from None


def _warn(path: Path, mode: int, keys: list[ApiKey]) -> None:
    raw = sum(key.is_raw for key in keys)
    # Of hashes a group may read the file: pods get a secret by the group of their volumes and in no other way.
    if mode & (stat.S_IROTH | stat.S_IWGRP | (stat.S_IRGRP if raw else 0)):
        logger.warning("serve.api_keys_file %s: others can read or write it; run `chmod 600 %s`", path, path)
    if raw:
        logger.warning("serve.api_keys_file %s: %d keys stand there as they are; %s", path, raw, REMEDY)


def _identity(path: Path) -> tuple[int, ...] | None:
    """Changes with the file, its rights included."""
    try:
        status = path.stat()
    except OSError:
        return None
    return (status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino)
