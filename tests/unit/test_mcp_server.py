"""The tool `search` over MCP: the real client starts `llm-embedder mcp`, which asks a service over real HTTP."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from embedder.cli.launch import need
from embedder.errors import ConfigError
from serve.access.keys import HASHED, hashed_key
from tests.cluster.conftest import free_port
from tests.serving import MODEL, guarded_api
from tests.web_server import answering

pytest.importorskip("mcp", reason="llm-embedder[mcp] is not installed")

from mcp import Client
from mcp.client.stdio import StdioServerParameters

ROOT = Path(__file__).parents[2]
KEY = "reading-key-of-a-test"
OF_ONE_TASK = f"{KEY}-of-one-task"
KEYS = f"read {KEY}\nread name=one-task task=qa {HASHED}{hashed_key(OF_ONE_TASK).hex()}\n"


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    with answering(guarded_api(tmp_path_factory.mktemp("mcp"), MODEL, KEYS), free_port()) as served:
        yield served


def started(url, *words, key=KEY):
    """`llm-embedder mcp` as an agent's client starts it."""
    environment = {"PYTHONPATH": str(ROOT), **({"LLM_EMBEDDER_KEY": key} if key else {})}
    return StdioServerParameters(
        command=sys.executable, args=["-m", "embedder.cli", "mcp", "--url", url, *words], env=environment, cwd=ROOT
    )


def called(server, *calls, mode="auto"):
    """The tools, and the answers to some calls, of one started server."""

    async def ask():
        async with Client(server, mode=mode) as client:
            tools = (await client.list_tools()).tools
            return tools, [await client.call_tool("search", arguments) for arguments in calls]

    return asyncio.run(asyncio.wait_for(ask(), 120))


def refused(answer):
    """The one line of a refusal."""
    (part,) = answer.content
    assert answer.is_error and len(part.text.splitlines()) == 1
    return part.text


@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_agent_searches_by_the_one_tool_that_it_is_told_of(url, mode):
    wanted = {"must": [{"key": "number", "range": {"lt": 8}}]}
    query = "Which function sorts a list?"
    (tool,), (answer, filtered) = called(
        started(url),
        {"query": query, "task": "qa", "k": 3},
        {"query": query, "task": "tool", "index": "live", "mode": "lexical", "filter": wanted, "k": 20},
        mode=mode,
    )
    assert tool.name == "search" and tool.annotations.read_only_hint
    assert set(tool.input_schema["properties"]) == {"query", "task", "index", "k", "mode", "filter"}
    assert tool.input_schema["required"] == ["query"]
    found = answer.structured_content
    assert found["passages"][0]["id"] == "list-sorts" and len(found["passages"]) == 3
    best = found["passages"][0]
    assert (best["text"], best["title"]) == ("This function sorts a list in Python.", "list") and not best["is_cut"]
    assert best["metadata"] == {"subject": "list", "number": 0, "session": "s0"} and found["task"] == "qa"
    lines = answer.content[0].text.splitlines()
    assert lines[:2] == [f"1. [docs/list-sorts] score {best['score']:.3f} list", best["text"]] and not answer.is_error
    assert {one["metadata"]["subject"] for one in filtered.structured_content["passages"]} == {"list", "dict"}


def test_calls_that_cannot_be_answered_are_told_in_one_line_and_the_next_one_is_answered(url):
    calls = [
        {},
        {"query": "x", "k": 21, "task": "qa"},
        {"query": "x", "limit": 3, "task": "qa"},
        {"query": "x"},
        {"query": "x", "task": "nothing"},
        {"query": "x", "index": "nothing"},
        {"query": "x" * 9000},
        {"query": "x", "task": "qa", "filter": {"must": [{"key": "a", "match": {}}]}},
        {"query": "sorts a list", "task": "qa"},
    ]
    _, (*wrong, right) = called(started(url), *calls)
    lines = [refused(answer) for answer in wrong]
    words = [
        "query: ",
        "k: ",
        "limit: unknown field; did you mean k?",
        "task: give one of ['chat', 'qa', 'tool']",
        "task 'nothing'",
        "index 'nothing': served are ['live']",
        "at most 8192",
        "exactly one of value, any, except",
    ]
    assert all(word in line for word, line in zip(words, lines, strict=True)), lines
    assert not right.is_error and len(right.structured_content["passages"]) == 5


def test_options_and_the_keys_scope_decide_what_an_agent_searches(url):
    _, (answer,) = called(started(url, "--task", "chat", "--index", "live"), {"query": "sorts a list"})
    assert answer.structured_content["task"] == "chat"
    # The only task of the key is searched where none is named, and no other one is there.
    _, (answer, other) = called(started(url, key=OF_ONE_TASK), {"query": "a"}, {"query": "a", "task": "tool"})
    assert answer.structured_content["task"] == "qa" and "task 'tool'" in refused(other)
    _, (answer,) = called(started(url, key=None), {"query": "a", "task": "qa"})
    assert "401" in refused(answer) and "LLM_EMBEDDER_KEY" in refused(answer)
    nobody = f"http://127.0.0.1:{free_port()}"
    _, (answer,) = called(started(nobody), {"query": "a", "task": "qa"})
    assert nobody in refused(answer) and "no service answers" in refused(answer)


def test_command_refuses_a_url_and_a_missing_package_in_one_line():
    line = [sys.executable, "-m", "serve.integrations.mcp_server", "--url", "ftp://x"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 2 and done.stdout == "" and "give http://HOST:PORT" in done.stderr.strip()
    with pytest.raises(ConfigError, match=r"pip install 'llm-embedder\[mcp\]'"):
        need("no_such_package", extra="mcp")
    need("mcp", extra="mcp")
