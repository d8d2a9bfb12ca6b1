"""A fuzzer on every route with the key of each role, and with none: never 5xx, and nothing that is not described."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks.serving_faults import fuzz
from serve.access.keys import ROLES
from serve.api import make_api
from tests.cluster.conftest import free_port
from tests.serving import local_service, publish, run_config
from tests.web_server import answering

pytestmark = pytest.mark.slow
KEYS = {role: f"{role}-{'k' * 32}" for role in ROLES}


@pytest.fixture(scope="module")
def url(tmp_path_factory, tiny_encoder_folder) -> Iterator[str]:
    work = tmp_path_factory.mktemp("fuzzed")
    publish(work, tiny_encoder_folder, "v1")
    keys = work / "keys"
    keys.write_text("".join(f"{role} {key}\n" for role, key in KEYS.items()), encoding="utf-8")
    api = make_api(local_service(run_config(work, tiny_encoder_folder, api_keys_file=str(keys))), lambda *_: None)
    with answering(api, free_port(), log_level="critical") as url:
        yield url


@pytest.mark.parametrize("role", [*ROLES, "none"])
def test_fuzzer_with_a_role_is_answered_as_described_and_never_with_5xx(url, role):
    found = fuzz(url, role, KEYS.get(role, ""), examples=30)
    assert (found["server_errors"], found["others"], found["exit"]) == (0, 0, 0), found["report"]
