"""A fuzzer on every route with the key of each role, and with none: never 5xx, and nothing that is not described."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks.serving_faults import fuzz
from serve.access.keys import ROLES
from tests.cluster.conftest import free_port
from tests.serving import guarded_api
from tests.web_server import answering

pytestmark = pytest.mark.slow
KEYS = {role: f"{role}-{'k' * 32}" for role in ROLES}


@pytest.fixture(scope="module")
def url(tmp_path_factory, tiny_encoder_folder) -> Iterator[str]:
    keys = "".join(f"{role} {key}\n" for role, key in KEYS.items())
    api = guarded_api(tmp_path_factory.mktemp("fuzzed"), tiny_encoder_folder, keys)
    with answering(api, free_port(), log_level="critical") as url:
        yield url


@pytest.mark.parametrize("role", [*ROLES, "none"])
def test_fuzzer_with_a_role_is_answered_as_described_and_never_with_5xx(url, role):
    found = fuzz(url, role, KEYS.get(role, ""), examples=30)
    assert (found["server_errors"], found["others"], found["exit"]) == (0, 0, 0), found["report"]
