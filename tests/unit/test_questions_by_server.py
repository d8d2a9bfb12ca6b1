"""Questions by an LLM on a server: the scores of the same LLM here, and what is refused before it costs."""

from __future__ import annotations

from contextlib import contextmanager

import pytest

from embedder.config.questions import QuestionsConfig
from embedder.config.run import LlmConfig, RunConfig
from embedder.config.tasks import BUILTIN_TASKS
from embedder.data.records import PASSAGE, write_table
from embedder.data.rows import passage_row
from embedder.errors import ConfigError
from embedder.labelling.server_backend import ServerIdentity
from embedder.models.causal_lm import load_lm
from embedder.models.open_llm import open_llm
from embedder.writing.writer import QuestionWriter
from ray_jobs.cluster.llm_server import note_server
from ray_jobs.questions import check
from ray_jobs.writing.draft_tables import draft_ledger, questions_fingerprint
from tests.cluster.conftest import free_port
from tests.unit.llm_server import LlmServer
from tests.web_server import answering

EXAMPLE = {"kind": "fact", "passages": ["The fox is red."], "query": "What color is the fox?", "output": "red"}
SETTINGS = {"kinds": ["fact"], "examples": [EXAMPLE], "num_samples": 2, "max_tokens": 16, "least_words": 3}


@contextmanager
def served(tiny_llm, cache):
    """The LLM here, and the section `llm` of a run file that asks a server of it."""
    lm = load_lm(tiny_llm, cache, device="cpu")
    with answering(LlmServer(lm).app(), free_port(), log_level="critical") as url:
        endpoint = {"url": f"{url}/v1", "model": "tiny", "prompt_price": 1.0}
        yield lm, {"model": tiny_llm.model, "max_prefix_tokens": tiny_llm.max_prefix_tokens, "endpoint": endpoint}


def test_a_server_scores_drafts_as_the_same_llm_here_does(tiny_llm, tmp_path):
    settings = QuestionsConfig(**SETTINGS)
    row = {"row_id": "a", "task": "qa", "kind": "fact", "texts": ["Paris is the capital of France."]}
    draft = {"query": "where is the market?", "output": " Paris", "rank": 1, "other_texts": ["The old bridge."]}
    with served(tiny_llm, tmp_path) as (lm, section):
        llm = LlmConfig(**section)
        there = QuestionWriter(open_llm(llm, tmp_path, 0), llm, settings, BUILTIN_TASKS)
        here = QuestionWriter(lm, tiny_llm, settings, BUILTIN_TASKS)
        (drafts,) = there.write([row])
        (found,), (expected,) = (each.check([{**row, "drafts": [draft]}]) for each in (there, here))
        assert len(drafts) == 2 and there.backend.work.money > 0
    for name in ("bare", "own"):
        assert found[name] == pytest.approx(expected[name], abs=1e-4)
    assert found["others"] == pytest.approx(expected["others"], abs=1e-4)


def test_a_server_is_refused_before_it_writes_a_question(tiny_llm, tiny_encoder, tmp_path):
    source = {"task": "qa", "dataset": "texts", "path": str(tmp_path), "format": "documents"}
    sections = {"encoder": tiny_encoder, "prepare": {"sources": [source]}, "questions": SETTINGS}

    def run(section, **endpoint):
        llm = {**section, "endpoint": {**section["endpoint"], **endpoint}}
        return RunConfig(paths={"work": tmp_path / "work", "cache": tmp_path / "cache"}, llm=llm, **sections)

    with served(tiny_llm, tmp_path) as (_, section):
        config = run(section)
        passage = passage_row(config.prepare.sources[0], "a", "Paris is the capital of France.")
        write_table([passage], PASSAGE, config.paths.corpus / "texts" / "part-00000.parquet")
        work = check(config)
        assert any("the LLM is tiny on" in line for line in work.lines)
        assert any("tokens, money 0.00" in line for line in work.lines)
        with pytest.raises(ConfigError, match=r"would cost about 0\.00 \([\d,]+ tokens\), more than llm\.endpoint"):
            check(run(section, max_money=1e-9))
        with pytest.raises(ValueError, match=r"questions are checked by log-likelihoods, which .* does not tell"):
            run(section, interface="chat")
        folder = draft_ledger(config.paths, questions_fingerprint(config)).folder.parent
        note_server(folder, ServerIdentity("sglang", "echo of token ids", [-1.0]))
        with pytest.raises(ConfigError, match="another engine or LLM made what is there"):
            check(config)
