"""Whether the LLM's prompt holds recent text and candidate, told and refused before any work."""

from __future__ import annotations

import pytest
import yaml

from embedder.config.load import load_run
from embedder.errors import ConfigError
from embedder.labelling.prompts import prompt_builder
from embedder.models.causal_lm import load_lm
from ray_jobs.prepare import check, read_sources
from tests.unit.tiny_folders import write_jsonl

TEXT = "the fox runs over the old bridge near market "


@pytest.fixture
def run(tmp_path, tiny_encoder_folder, tiny_llama_folder):
    """Makes the run of a document of 100 chunks of 9 words; `llm` are settings of the LLM, `changed` of the source."""
    write_jsonl(tmp_path / "books" / "train.jsonl", [{"query_id": "book", "text": TEXT * 100}])

    def make(llm=None, tasks=None, evaluate=None, **changed):
        source = {"task": "lrlm", "dataset": "books", "path": str(tmp_path / "books"), "chunk_words": 9, **changed}
        run = {
            "paths": {"work": str(tmp_path / "work"), "cache": str(tmp_path / "cache")},
            "encoder": {"model": str(tiny_encoder_folder), "pooling": "mean"},
            "llm": None if llm == "none" else {"model": str(tiny_llama_folder), **(llm or {})},
            "prepare": {"sources": [source]},
            "tasks": {"lrlm": tasks or {}},
            "evaluate": evaluate or {},
        }
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(run), encoding="utf-8")
        return load_run(tmp_path / "run.yaml")

    return make


def notes(config):
    return read_sources(config)["books"].notes


def needed(config):
    """Tokens of the prompts with recent text and candidate, exactly."""
    builder = prompt_builder(load_lm(config.llm, config.paths.cache, device="cpu"), config.tasks["lrlm"], config.llm)
    return max(
        len(builder.prefix(text.query, [text.passage], []).ids) for text in read_sources(config)["books"].continued
    )


def test_prompt_room_is_refused_in_one_line_whose_remedy_works(run):
    exact = needed(run())
    with pytest.raises(ConfigError) as refused:
        check(run({"max_prefix_tokens": exact // 2}))
    message = str(refused.value)
    assert message.startswith(f"source books: llm.max_prefix_tokens is {exact // 2}, but recent text and candidate ")
    assert "chunk_words (9) or recent_chunks (4)" in message and "\n" not in message
    enough = int(message.split("raise it to ")[1].split(",")[0])
    assert exact <= enough <= exact + 96
    assert notes(run({"max_prefix_tokens": enough})) == []
    assert notes(run({"max_prefix_tokens": exact // 2}, recent_chunks=0)) == []


def test_prompt_room_says_how_many_prompts_lose_the_end_of_a_candidate(run, tmp_path):
    long = TEXT.replace(" ", "-") * 3 + " "
    rows = [{"query_id": "book", "text": TEXT * 100}, {"query_id": "long", "text": long * 400}]
    write_jsonl(tmp_path / "books" / "train.jsonl", rows)
    (line,) = notes(run({"max_prefix_tokens": 300}))
    assert line.startswith("books: in about ") and "of 64 prompts the longest candidate loses its end" in line
    assert "llm.max_prefix_tokens is 300" in line


def test_prompt_room_says_that_outputs_are_scored_in_part(run):
    (line,) = notes(run(tasks={"max_output_tokens": 4}))
    assert line.startswith("books: outputs have about ")
    assert line.endswith("of which tasks.lrlm.max_output_tokens 4 are scored")


@pytest.mark.parametrize(
    "settings",
    [
        {"llm": "none"},
        {"llm": {"max_prefix_tokens": 16}, "tasks": {"reward": "none", "loss": "contrastive"}},
    ],
    ids=["no LLM", "no reward"],
)
def test_prompt_room_is_nothing_to_a_run_whose_llm_reads_no_long_text(run, settings):
    assert all("prompts" not in line and "outputs" not in line for line in notes(run(**settings)))


def test_prompt_room_takes_the_rule_of_thumb_where_the_tokenizer_is_not_here(run):
    characters = len((TEXT * 7).strip())
    assert notes(run({"model": "owner/name", "max_prefix_tokens": characters // 4 + 1})) == []
    for model in ("owner/name", "s3://bucket/llm", "package:not_installed"):
        with pytest.raises(ConfigError, match=f"need about {characters / 4:,.0f} tokens"):
            notes(run({"model": model, "max_prefix_tokens": characters // 4 - 10}))
