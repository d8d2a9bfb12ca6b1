"""An LLM on a server: the scores of the same LLM here, whatever the engine; faults; what is refused before labels."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from dataclasses import replace

import pytest

from embedder.config.endpoints import LlmEndpoint
from embedder.config.label import LabelConfig
from embedder.config.run import LlmConfig
from embedder.config.tasks import BUILTIN_TASKS
from embedder.errors import ConfigError, ModelError
from embedder.labelling.completions import AnswerError, likelihood
from embedder.labelling.http_backend import HttpBackend
from embedder.labelling.labeller import RewardLabeller
from embedder.labelling.prefix_tree import PackedPrompt
from embedder.labelling.sampling import Sampling
from embedder.labelling.sequential_backend import SequentialBackend
from embedder.models.causal_lm import load_lm
from embedder.models.remote_llm import RemoteLlm
from embedder.remote import pace
from embedder.remote import server as asking
from tests.cluster.conftest import free_port
from tests.unit.llm_server import LlmServer
from tests.web_server import answering

KEY = "sk-secret-0123456789abcdef"
LONGEST = 216


@pytest.fixture(scope="module")
def lm(tiny_llm, tmp_path_factory):
    return load_lm(tiny_llm, tmp_path_factory.mktemp("cache"), device="cpu")


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(asking, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(asking, "LONGEST_PAUSE_S", 0.05)


@contextmanager
def backend_of(server, tiny_llm, **fields):
    with answering(server.app(), free_port(), log_level="critical") as url:
        given = LlmEndpoint(url=f"{url}/v1", model=server.name, **{"max_requests": 8, **fields})
        remote = RemoteLlm.of(LlmConfig(model=tiny_llm.model, endpoint=given), given)
        try:
            yield HttpBackend(remote, LONGEST)
        finally:
            remote.server.close()


def prompts(lm):
    def ids(text):
        return lm.tokens(text)

    return [
        PackedPrompt(ids("Knowledge: the old bridge. Q: where is it? A:"), [ids(" Paris"), ids(" the market")]),
        PackedPrompt(ids("Speaker 1: where is the station? Speaker 2:"), [ids(" behind the bridge, next"), ids(" no")]),
    ]


@pytest.mark.parametrize(
    ("engine", "how"),
    [
        ("vllm", "prompt_logprobs of token ids"),
        ("sglang", "echo of token ids"),
        ("llama", "echo of texts"),
    ],
)
def test_http_backend_scores_equal_those_of_the_llm_here(lm, tiny_llm, engine, how):
    expected = SequentialBackend(lm).score(prompts(lm))
    with backend_of(LlmServer(lm, engine), tiny_llm) as backend:
        found = backend.score(prompts(lm))
        assert (backend.how, backend.identity.engine) == (how, engine)
    for row, known in zip(found, expected, strict=True):
        assert row == pytest.approx(known, abs=1e-5)


def test_http_backend_scores_begin_at_the_first_scored_token(lm, tiny_llm):
    prompt = replace(prompts(lm)[1], unscored=[2, 0])
    with backend_of(LlmServer(lm), tiny_llm) as backend:
        assert backend.score([prompt])[0] == pytest.approx(SequentialBackend(lm).score([prompt])[0], abs=1e-5)


@pytest.mark.parametrize("engine", ["vllm", "llama"])
def test_http_backend_samples_as_many_as_asked_for_up_to_a_stop(lm, tiny_llm, engine):
    server = LlmServer(lm, engine)
    sampling = Sampling(num_samples=3, max_tokens=6, temperature=1.5, top_k=40, stop=("e",), end_ids=lm.end_ids)
    with backend_of(server, tiny_llm) as backend:
        server.requests.clear()
        drawn = backend.sample([prompts(lm)[0].prefix, prompts(lm)[1].prefix], [3, 4], sampling)
        asked = len(server.requests)
    assert [len(samples) for samples in drawn] == [3, 3]
    assert all(len(tokens) <= 6 and "e" not in lm.tokenizer.decode(tokens) for row in drawn for tokens in row)
    assert asked == (2 if engine == "vllm" else 6)
    assert len({tuple(tokens) for tokens in drawn[0]}) > 1


@pytest.mark.parametrize("engine", ["vllm", "sglang", "llama"])
@pytest.mark.parametrize(
    ("spoiled", "reason"),
    [
        ("zeros", "zeros"),
        ("none", "no log-likelihoods of the prompt"),
        ("shifted", "for a token that it wrote with"),
        ("split", "another tokenisation|other tokens|tokens for"),
    ],
)
def test_http_backend_refuses_a_server_whose_likelihoods_cannot_be_used(lm, tiny_llm, engine, spoiled, reason):
    with pytest.raises(ModelError, match=reason) as caught, backend_of(LlmServer(lm, engine, spoiled), tiny_llm):
        pass
    told = str(caught.value)
    assert "\n" not in told and "gives no log-likelihoods of prompts" in told and "--logits_all" in told


def test_http_backend_a_text_that_the_server_divides_otherwise_spoils_its_own_output_alone(lm, tiny_llm, caplog):
    server = LlmServer(lm, "llama")
    good, bad = prompts(lm)
    # Ids that this tokenizer would never make of their text.
    spelled = [lm.tokens(sign)[0] for sign in "market"]
    with caplog.at_level(logging.WARNING), backend_of(server, tiny_llm) as backend:
        found = backend.score([replace(good, outputs=[good.outputs[0], spelled]), bad])
    assert found[0][1] != found[0][1]
    assert found[0][0] == pytest.approx(SequentialBackend(lm).score([good])[0][0], abs=1e-5)
    assert found[1] == pytest.approx(SequentialBackend(lm).score([bad])[0], abs=1e-5)
    assert caplog.text.count("another tokenisation") == 1


FAULTS = {
    "429": [429, 429],
    "500": [500],
    "502": [502, 503],
    "cut": ["cut"],
    "slow": ["slow"],
    "Retry-After": [(429, {"retry-after": "0.2"}), (503, {"retry-after": "Fri, 01 Jan 2010 00:00:00 GMT"})],
}


@pytest.mark.parametrize("faults", FAULTS.values(), ids=FAULTS.keys())
def test_http_backend_passing_faults_change_no_score(lm, tiny_llm, faults):
    server, expected = LlmServer(lm), SequentialBackend(lm).score(prompts(lm))
    with backend_of(server, tiny_llm, timeout_s=1) as backend:
        server.faults[:] = faults
        found = backend.score(prompts(lm))
        assert not server.faults
    assert [score for row in found for score in row] == pytest.approx([v for row in expected for v in row], abs=1e-5)


def test_http_backend_a_server_that_asks_for_time_is_asked_by_nobody_until_then(lm, tiny_llm):
    server = LlmServer(lm)
    with backend_of(server, tiny_llm) as backend:
        began = pace.time.monotonic()
        server.faults[:] = [(429, {"retry-after": "1"})]
        backend.score(prompts(lm))
        assert pace.time.monotonic() - began >= 1
        server.faults[:] = [(429, {"retry-after": "7200"})]
        with pytest.raises(ModelError, match="left alone for 7,200 s"):
            backend.score(prompts(lm))


def test_http_backend_a_server_that_stays_broken_ends_the_work_in_one_line(lm, tiny_llm):
    server = LlmServer(lm)
    with backend_of(server, tiny_llm, attempts=3) as backend:
        server.faults[:] = [500] * 1000
        with pytest.raises(ModelError, match=r"3 requests failed, the last one with status 500") as caught:
            backend.score(prompts(lm) * 50)
        sent = 1000 - len(server.faults)
    assert "\n" not in str(caught.value)
    # What was queued behind the failure was never sent.
    assert sent < 60


def test_http_backend_repeats_have_a_budget(lm, tiny_llm):
    server = LlmServer(lm)
    with backend_of(server, tiny_llm, attempts=100, max_requests=1) as backend:
        server.faults[:] = [500] * 1000
        with pytest.raises(ModelError, match="too many requests fail"):
            backend.score(prompts(lm))
        assert 1000 - len(server.faults) <= 40


def test_http_backend_an_answer_that_is_too_long_is_refused(lm, tiny_llm):
    server = LlmServer(lm)
    with backend_of(server, tiny_llm, max_answer_bytes=50_000) as backend:
        server.faults[:] = ["large"]
        with pytest.raises(ModelError, match="more than 50,000 bytes"):
            backend.score(prompts(lm))


@pytest.mark.parametrize("place", ["key_variable", "key_file"])
def test_http_backend_the_key_is_sent_and_never_told(lm, tiny_llm, monkeypatch, tmp_path, caplog, place):
    caplog.set_level("DEBUG")
    monkeypatch.setenv("LLM_KEY", KEY)
    (tmp_path / "key").write_text(f"{KEY}\n")
    given = "LLM_KEY" if place == "key_variable" else tmp_path / "key"
    with backend_of(LlmServer(lm, key=KEY), tiny_llm, **{place: given}) as backend:
        assert backend.score(prompts(lm))
        shown = repr(backend.lm.endpoint)
    other = LlmServer(lm, key=f"{KEY}-other")
    with pytest.raises(ModelError, match="Bearer ") as caught, backend_of(other, tiny_llm, **{place: given}):
        pass
    assert KEY not in shown + str(caught.value) + caplog.text


def test_http_backend_a_key_that_is_missing_is_told_before_anything_is_asked(lm, tiny_llm, monkeypatch, tmp_path):
    (tmp_path / "empty").write_text(" \n")
    monkeypatch.delenv("LLM_KEY", raising=False)
    for place in ({"key_variable": "LLM_KEY"}, {"key_file": tmp_path / "none"}, {"key_file": tmp_path / "empty"}):
        server = LlmServer(lm)
        with pytest.raises(ConfigError, match=r"llm\.endpoint: "), backend_of(server, tiny_llm, **place):
            pass
        assert not server.requests
    with pytest.raises(ValueError, match="both given"):
        LlmEndpoint(url="http://x", model="m", key_variable="K", key_file=tmp_path / "empty")


def test_http_backend_another_model_and_prompts_that_are_too_long_are_refused(lm, tiny_llm):
    with answering(LlmServer(lm, name="other").app(), free_port()) as url:
        given = LlmEndpoint(url=f"{url}/v1", model="tiny")
        remote = RemoteLlm.of(LlmConfig(model=tiny_llm.model, endpoint=given), given)
        with pytest.raises(ModelError, match="has no model 'tiny'; it has other"):
            HttpBackend(remote, LONGEST)
    short = LlmServer(lm, most_tokens=200)
    with pytest.raises(ConfigError, match=r"takes 200; lower llm\.max_prefix_tokens"), backend_of(short, tiny_llm):
        pass
    with answering(LlmServer(lm).app(), free_port()) as url:
        given = LlmEndpoint(url=f"{url}/v2", model="tiny")
        remote = RemoteLlm.of(LlmConfig(model=tiny_llm.model, endpoint=given), given)
        with pytest.raises(ModelError, match="likelihoods need POST /completions"):
            HttpBackend(remote, LONGEST)


def test_http_backend_counts_tokens_and_money(lm, tiny_llm):
    with backend_of(LlmServer(lm), tiny_llm, prompt_price=2.0, output_price=10.0) as backend:
        before, money = backend.work.tokens, backend.work.money
        backend.score(prompts(lm))
        read = sum(len(prompt.prefix) + len(output) for prompt in prompts(lm) for output in prompt.outputs)
        assert backend.work.tokens - before == read + 4
        assert backend.work.money - money == pytest.approx((read * 2.0 + 4 * 10.0) / 1e6)
        assert backend.work.flops == 0


def test_labels_of_a_server_are_those_of_the_llm_here(lm, tiny_llm):
    """The whole labeller: rewards by likelihood are the same numbers; ranks are among samples of another generator."""
    tasks = {"qa": BUILTIN_TASKS["qa"].model_copy(update={"reward": "gain", "shots": 0})}
    group = {
        "task": "qa",
        "dataset": "city",
        "query_id": "q",
        "query": "which city is the capital?",
        "answers": ["Paris"],
        "candidate_ids": ["a", "b"],
        "candidate_texts": ["Paris is the capital of France", "the old bridge"],
        "relevance": [1, 0],
    }
    here = RewardLabeller(lm, tiny_llm, LabelConfig(), tasks, {}).label([group], "print")[0]
    with backend_of(LlmServer(lm), tiny_llm) as backend:
        labeller = RewardLabeller(backend.lm, tiny_llm, LabelConfig(), tasks, {})
        there = labeller.label([group], "print")[0]
    assert there["error"] is None and there["rewards"] == pytest.approx(here["rewards"], abs=1e-4)


def test_llm_settings_that_a_server_decides_are_refused():
    given = {"url": "http://x/v1", "model": "m"}
    with pytest.raises(ValueError, match="batch_tokens, dtype is for an LLM that is loaded here"):
        LlmConfig(model="x", endpoint=given, dtype="bfloat16", batch_tokens=4096)
    with pytest.raises(ValueError, match="max_money is given without prompt_price"):
        LlmEndpoint(**given, max_money=3)


@pytest.mark.parametrize("capacity", [4, 12])
def test_pace_finds_what_a_server_bears(lm, tiny_llm, capacity):
    server = LlmServer(lm, seconds=0.02)
    with backend_of(server, tiny_llm, max_requests=64, attempts=30) as backend:
        server.capacity, server.most_at_once = capacity, 0
        backend.score(prompts(lm) * 60)
        limit = backend.lm.server.pace.limit
    assert capacity / 2 - 1 <= limit <= 1.5 * capacity
    assert server.refused < 60


def test_http_backend_a_text_that_the_server_refuses_spoils_its_own_output_alone(lm, tiny_llm, caplog):
    server = LlmServer(lm)
    with caplog.at_level(logging.WARNING), backend_of(server, tiny_llm) as backend:
        server.faults += [400]
        found = backend.score(prompts(lm))
    flat = [score for row in found for score in row]
    assert sum(score != score for score in flat) == 1 and caplog.text.count("get no reward") == 1


@pytest.mark.parametrize("value", [None, True, "-1", float("nan"), 0.5, -(10**400)])
def test_likelihood_of_an_answer_is_a_number_that_one_can_be(value):
    if value is None:
        assert likelihood(value) is None
        return
    with pytest.raises(AnswerError):
        likelihood(value)
