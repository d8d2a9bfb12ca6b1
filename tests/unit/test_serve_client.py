"""The typed client where the service, or whatever answers in its place, asks it to wait."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import httpx
import pytest

from serve import client as client_module
from serve.client import AsyncClient, Client, ServiceError

REFUSAL = {"error": {"message": "later", "type": "overloaded", "param": None, "code": "overloaded"}}


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that a client waits, without waiting."""
    pauses: list[float] = []

    async def note(seconds: float) -> None:
        pauses.append(seconds)

    # The names in the client's module and not the functions, which threads of other tests in this process call too.
    monkeypatch.setattr(client_module, "time", SimpleNamespace(sleep=pauses.append))
    monkeypatch.setattr(client_module, "asyncio", SimpleNamespace(sleep=note))
    return pauses


@pytest.mark.parametrize(
    ("told", "waited"),
    [("3", 3.0), ("0", 0.0), ("86400", 20.0), ("9" * 400, 20.0), ("-1", 1.0), ("soon", 1.0), ("1e9", 1.0), ("", 1.0)],
)
def test_client_waits_as_told_but_never_longer_than_its_own_timeout(slept, told, waited):
    """Fault 8.15: it slept for as long as it was told."""
    transport = httpx.MockTransport(lambda _: httpx.Response(429, json=REFUSAL, headers={"Retry-After": told}))

    async def ask() -> None:
        async with AsyncClient("http://service", timeout_s=20, retries=2) as waiting:
            waiting._http = httpx.AsyncClient(base_url="http://service", transport=transport)
            await waiting.indexes()

    with Client("http://service", timeout_s=20, retries=2) as client, pytest.raises(ServiceError, match="429: later"):
        client._http = httpx.Client(base_url="http://service", transport=transport)
        client.indexes()
    assert slept == [waited, waited]
    with pytest.raises(ServiceError, match="429: later"):
        asyncio.run(ask())
    assert slept == [waited] * 4
