"""Asks one of OpenAI's interfaces, whoever serves it: JSON in, JSON out.

What fails for a while is tried again. The key goes into the Authorization header and nowhere else; in messages of the
server it is masked.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from embedder.config.endpoints import ServerAddress
from embedder.errors import ConfigError, ModelError
from embedder.remote.pace import RequestPace

TOO_MANY = 429
OVERLOADED = {408, TOO_MANY, 503, 504}
"""Statuses of a server that is asked too much."""
PASSING = OVERLOADED | {409, 425, 500, 502}
"""Statuses that may change a little later, so that another try makes sense."""
INVALID = b"validation error"
"""Stands in the answer of llama-cpp-python's server to a request of another form, which it calls a fault of its own
(500)."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
LONGEST_ASKED_S = 900.0
"""A server that asks for a longer pause has no more to give today."""
SHOWN_CHARACTERS = 200
"""Characters shown of what a server says when it refuses."""
LONGEST_KEY = 4096


class RefusedError(ModelError):
    """The server will not answer this request, however often it is asked."""

    status: int = 0


@dataclass(frozen=True)
class _Failure:
    """Why a request has to be sent again."""

    problem: str
    asked_pause: float = 0.0
    is_overload: bool = True
    is_fault: bool = True
    is_silent: bool = False


class Server:
    """A server; may be used by several threads."""

    def __init__(self, address: ServerAddress, setting: str, transport: httpx.BaseTransport | None = None) -> None:
        """`setting`: the part of the run file that errors name.

        Raises:
            ConfigError: there is no key that can be sent, or the environment's proxies cannot be used.
        """
        self.address, self.setting = address, setting
        self.pace = RequestPace(address.max_requests)
        self._key = api_key(address, setting)
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        limits = httpx.Limits(max_connections=address.max_requests, max_keepalive_connections=address.max_requests)
        # No redirect is followed: the key must not go to another host.
        try:
            self._client = httpx.Client(headers=headers, timeout=address.timeout_s, limits=limits, transport=transport)
        except (ImportError, OSError, ValueError, httpx.InvalidURL) as error:
            raise ConfigError(
                f"{setting}: the proxy or the certificates that the environment names cannot be used ({error}); "
                "correct HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, SSL_CERT_FILE or SSL_CERT_DIR"
            ) from error

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def get(self, path: str) -> Any:  # noqa: ANN401
        """What the server says of a path; errors as of `post`."""
        return self._ask("GET", path, None)

    def post(self, path: str, body: Mapping[str, Any]) -> Any:  # noqa: ANN401
        """The server's answer to a body.

        Raises:
            RefusedError: the server refuses.
            ModelError: it stays unreachable for `attempts` requests, fails too often, or answers with something else.
        """
        return self._ask("POST", path, body)

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None) -> Any:  # noqa: ANN401
        url, attempts, failure = f"{self.address.url}{path}", self.address.attempts, _Failure("")
        for attempt in range(attempts):
            began = self.pace.enter()
            try:
                answer = self._send(method, url, body)
                # Told before its place is free, so that no other takes it as if nothing were.
                if not isinstance(answer, _Failure):
                    self.pace.answered()
                elif answer.is_overload:
                    self.pace.overloaded(began, is_silent=answer.is_silent)
            finally:
                self.pace.leave()
            if not isinstance(answer, _Failure):
                return answer[0]
            failure = answer
            if attempt + 1 == attempts:
                break
            # A refusal for too many requests is no fault: the pace answers it.
            if failure.is_fault and not self.pace.may_repeat():
                raise ModelError(
                    f"{url}: too many requests fail, the last one with {failure.problem}; look at the server"
                )
            self._wait(url, failure, attempt)
        raise ModelError(f"{url}: {attempts} requests failed, the last one with {failure.problem}; try again later")

    def _wait(self, url: str, failure: _Failure, attempt: int) -> None:
        # The pauses of several threads differ, so that they do not come back together.
        if not failure.asked_pause:
            pause = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**attempt) * random.uniform(0.5, 1.0)
            # Twice: a server that still refuses has its places taken by others, or counts requests by the minute.
            if attempt < 2 and failure.is_overload and not failure.is_silent:
                self.pace.wait_for_answer(pause)
            else:
                time.sleep(pause)
            return
        if failure.asked_pause > LONGEST_ASKED_S:
            raise ModelError(
                f"{url} asks to be left alone for {failure.asked_pause:,.0f} s ({failure.problem}); run the job again "
                "then, it goes on where it ended"
            )
        self.pace.pause(failure.asked_pause * random.uniform(1.0, 1.1))

    def _send(self, method: str, url: str, body: Mapping[str, Any] | None) -> tuple[Any] | _Failure:
        try:
            with self._client.stream(method, url, json=body) as response:
                content = self._content(response)
        except httpx.RequestError as error:
            # A port where nobody listens is no overload: fewer requests would not help.
            is_reached = not isinstance(error, httpx.ConnectError)
            return _Failure(f"{type(error).__name__}: {error}", is_overload=is_reached, is_silent=is_reached)
        if response.status_code == httpx.codes.OK:
            return (self._json(content),)
        problem = f"status {response.status_code}: {self._shown(content)}"
        if response.status_code not in PASSING or INVALID in content:
            refused = RefusedError(f"{url} refuses: {problem}; correct {self.setting}")
            refused.status = response.status_code
            raise refused
        status = response.status_code
        return _Failure(problem, asked_pause(response.headers), status in OVERLOADED, status != TOO_MANY)

    def _content(self, response: httpx.Response) -> bytes:
        content, began = bytearray(), time.monotonic()
        for part in response.iter_bytes():
            content += part
            if len(content) > self.address.max_answer_bytes:
                raise ModelError(
                    f"{self.address.url} answered with more than {self.address.max_answer_bytes:,} bytes; raise "
                    f"max_answer_bytes of {self.setting} if that is right"
                )
            if time.monotonic() - began > self.address.timeout_s:
                # httpx counts from byte to byte, and a server that sends one now and then would never end.
                raise httpx.ReadTimeout(f"no whole answer within {self.address.timeout_s:g} s")
        return bytes(content)

    def _json(self, content: bytes) -> Any:  # noqa: ANN401
        try:
            return json.loads(content)
        except (ValueError, RecursionError) as error:
            raise ModelError(f"{self.address.url} answered with no JSON: {self._shown(content)}") from error

    def _shown(self, content: bytes) -> str:
        text = content.decode("utf-8", "replace")
        return (text.replace(self._key, "***") if self._key else text)[:SHOWN_CHARACTERS]


def whole_text(said: object) -> str:
    """What a server wrote; half a pair of surrogates, which no file or tokenizer takes, becomes a question mark."""
    return str(said).encode("utf-8", "replace").decode()


def api_key(address: ServerAddress, setting: str) -> str:
    """The key in the environment variable or the file that is named; empty where none is.

    Raises:
        ConfigError: there is no key.
    """
    if address.key_variable is not None:
        key = os.environ.get(address.key_variable, "").strip()
        if not key:
            raise ConfigError(f"{setting}: the environment variable {address.key_variable} holds no key; set it")
        return _sendable(key, f"{setting}: the environment variable {address.key_variable}")
    if address.key_file is None:
        return ""
    try:
        # Some editors begin a file with a byte order mark.
        with address.key_file.open(encoding="utf-8-sig") as file:
            key = file.read(LONGEST_KEY + 1).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{setting}: key_file {address.key_file} cannot be read ({error}); correct it") from error
    return _sendable(key, f"{setting}: key_file {address.key_file}")


def _sendable(key: str, place: str) -> str:
    """The key, if a header can hold it: an error of the request itself would show the key.

    Raises:
        ConfigError: none can.
    """
    if not 0 < len(key) <= LONGEST_KEY or not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError(f"{place} holds no key; it must hold the key and nothing else, in ASCII without white space")
    return key


def asked_pause(headers: Mapping[str, str]) -> float:
    """Seconds that a server asks to wait, by a number or a date; 0 where it asks for nothing that can be read."""
    value = headers.get("retry-after", "").strip()
    if value.isascii() and value.replace(".", "", 1).isdigit():
        return float(value)
    try:
        until = parsedate_to_datetime(value)
        until = until if until.tzinfo else until.replace(tzinfo=UTC)
        return max(0.0, (until - datetime.now(UTC)).total_seconds())
    except (ValueError, OverflowError):
        return 0.0
