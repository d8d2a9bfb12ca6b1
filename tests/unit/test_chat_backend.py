"""Verdicts of a chat server: those of the same LLM here, by the first token or by replies; what is refused."""

from __future__ import annotations

import math
from contextlib import contextmanager

import pytest

from embedder.config.endpoints import LlmEndpoint
from embedder.config.label import LabelConfig
from embedder.config.run import LlmConfig, RunConfig
from embedder.config.tasks import BUILTIN_TASKS, JudgementTemplate
from embedder.errors import ConfigError, ModelError
from embedder.labelling.backends import find_server
from embedder.labelling.chat_backend import REPLIES, from_first_tokens, from_replies
from embedder.labelling.labeller import RewardLabeller
from embedder.models.causal_lm import load_lm
from embedder.models.remote_llm import RemoteLlm
from ray_jobs.labelling.teachers import needed_llm
from tests.cluster.conftest import free_port
from tests.unit.llm_server import LlmServer
from tests.unit.test_own_answers import group
from tests.web_server import answering

LONGEST = 216
VERDICTS = ("yes", "partly", "no")
SHORT = JudgementTemplate(context="Knowledge: {passage}\n", input="Q: {query}\nA:")
TASKS = {"judged": BUILTIN_TASKS["qa"].model_copy(update={"reward": "judgement", "judgement_template": SHORT})}


@pytest.fixture(scope="module")
def lm(tiny_llm, tmp_path_factory):
    return load_lm(tiny_llm, tmp_path_factory.mktemp("cache"), device="cpu")


@contextmanager
def remote_of(server, tiny_llm):
    """The LLM of a run file that names this server."""
    with answering(server.app(), free_port(), log_level="critical") as url:
        endpoint = LlmEndpoint(url=f"{url}/v1", model=server.name, interface="chat")
        settings = LlmConfig(model=tiny_llm.model, max_prefix_tokens=tiny_llm.max_prefix_tokens, endpoint=endpoint)
        remote = RemoteLlm.of(settings, endpoint)
        try:
            yield remote, settings
        finally:
            remote.server.close()


@pytest.mark.parametrize("spoiled", ["", "newer"])
def test_chat_backend_judges_as_the_same_llm_here(lm, tiny_llm, spoiled):
    rows = [group("judged", number) for number in range(3)]
    here = RewardLabeller(lm, tiny_llm, LabelConfig(), TASKS, {}).label(rows, "print")
    server = LlmServer(lm, spoiled=spoiled)
    with remote_of(server, tiny_llm) as (remote, settings):
        labeller = RewardLabeller(remote, settings, LabelConfig(), TASKS, {})
        before = len(server.requests)
        there = labeller.label(rows, "print")
        assert labeller.backend.how == "first token of a chat reply"
    assert len(server.requests) - before == 3 * 5  # a request a prompt, however many verdicts there are
    # It is refused once at most, and then knows how the server wants a reply to be bounded.
    assert sum("max_tokens" in request for request in server.requests) == (1 if spoiled else len(server.requests))
    for one, other in zip(here, there, strict=True):
        assert other["error"] is None and other["outputs"] == one["outputs"]
        assert other["rewards"] == pytest.approx(one["rewards"], abs=1e-4)


@pytest.mark.parametrize("spoiled", ["none", "refused", "newer, refused"])
def test_chat_backend_counts_replies_where_the_server_tells_no_likelihoods(lm, tiny_llm, spoiled):
    server = LlmServer(lm, spoiled=spoiled)
    with remote_of(server, tiny_llm) as (remote, settings):
        labeller = RewardLabeller(remote, settings, LabelConfig(), TASKS, {})
        (row,) = labeller.label([group("judged")], "print")
        assert labeller.backend.how == f"{REPLIES} chat replies"
        assert labeller.backend.identity.scores == []
    assert row["error"] is None and all(0 < reward < 1 for reward in row["rewards"])
    # The server gives two replies at a time.
    assert {request.get("n") for request in server.requests if "n" in request} == {10, 8, 6, 4, 2}


def test_chat_backend_refuses_a_server_whose_replies_are_no_verdicts(lm, tiny_llm):
    with (
        remote_of(LlmServer(lm, spoiled="no verdicts"), tiny_llm) as (_, settings),
        pytest.raises(ModelError, match=r"tiny begins its replies with none of yes, partly, no; take an LLM"),
    ):
        find_server(settings, settings.endpoint, LONGEST)


def test_verdicts_from_first_tokens_add_up_all_that_begin_one():
    first = [("Yes", math.log(0.3)), (" yes", math.log(0.2)), ("par", math.log(0.1)), ("Maybe", math.log(0.2))]
    assert from_first_tokens(first, VERDICTS) == pytest.approx([math.log(0.5), math.log(0.1), math.log(0.1)])
    # Of a server that lists one token, the others have what it leaves.
    one = dict(zip(VERDICTS, from_first_tokens([("no", math.log(0.9))], VERDICTS), strict=True))
    assert one == pytest.approx({"no": math.log(0.9), "yes": math.log(0.1), "partly": math.log(0.1)})
    assert all(map(math.isnan, from_first_tokens([("Well", -0.1), (" ", -3.0)], VERDICTS)))
    assert all(map(math.isnan, from_first_tokens([], VERDICTS)))


def test_verdicts_from_replies_are_smoothed_shares():
    found = from_replies(["Yes.", "no", "yes, because", "hm"], VERDICTS)
    assert found == pytest.approx([math.log(2.5 / 4.5), math.log(0.5 / 4.5), math.log(1.5 / 4.5)])
    assert all(map(math.isnan, from_replies(["hm"], VERDICTS)))


def test_a_chat_is_asked_for_judgements_alone(tiny_llm, tiny_encoder, tmp_path):
    llm = {"model": tiny_llm.model, "endpoint": {"url": "http://box/v1", "model": "m", "interface": "chat"}}
    run = {"paths": {"work": tmp_path}, "encoder": tiny_encoder, "llm": llm}
    with pytest.raises(ConfigError, match=r"tasks \['qa'\] need them; set their reward to judgement"):
        needed_llm(RunConfig(**run), {"qa", "tool"})
    judged = RunConfig(**run, tasks={"qa": {"reward": "judgement"}})
    assert needed_llm(judged, {"qa", "tool"}) == judged.llm
    with pytest.raises(ValueError, match=r"evaluate\.llm_queries asks for log-likelihoods, which .* does not tell"):
        RunConfig(**run, evaluate={"llm_queries": 3})
