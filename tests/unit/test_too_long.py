"""How many texts are too long for the encoder, told from a sample by `prepare` and exactly by the jobs that encode."""

from __future__ import annotations

import numpy as np
import pytest
import yaml

from embedder.config.load import load_run
from embedder.config.run import EncoderConfig
from embedder.data.records import PASSAGE, QUERY, write_table
from embedder.models.encoder import load_encoder
from embedder.run.too_long import SAMPLE, TokenCounter, long_text_lines
from ray_jobs.cluster.tables import encoding_work
from ray_jobs.retrieval import vectors
from ray_jobs.retrieval.vectors import missing_blocks, open_store, vector_table
from tests.unit.tiny_folders import byte_level, llama_folder, wrapped

LONG = "a list holds items in order and a dict maps keys to values " * 9


@pytest.fixture
def config(tmp_path, tiny_encoder_folder):
    """A prepared run: 2 of 5 passages, 1 of 2 train queries and the test query are too long."""
    (tmp_path / "data").mkdir()
    run = {
        "paths": {"work": str(tmp_path / "work"), "cache": str(tmp_path / "cache")},
        "encoder": {"model": str(tiny_encoder_folder), "pooling": "mean", "max_tokens": 100},
        "prepare": {"sources": [{"task": "convsearch", "dataset": "talks", "path": str(tmp_path / "data")}]},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run), encoding="utf-8")
    config = load_run(tmp_path / "run.yaml")
    common = {"task": "convsearch", "dataset": "talks"}
    texts = ["fox", LONG, "dog", LONG, "city"]
    passages = [{**common, "id": str(number), "text": text} for number, text in enumerate(texts)]
    write_table(passages[:3], PASSAGE, config.paths.corpus / "talks" / "part-00000.parquet")
    write_table(passages[3:], PASSAGE, config.paths.corpus / "talks" / "part-00001.parquet")
    for split, queries in {"train": ["who?", LONG], "test": [LONG]}.items():
        rows = [{**common, "query_id": str(number), "query": text} for number, text in enumerate(queries)]
        write_table(rows, QUERY, config.paths.queries / split / "talks.parquet")
    return config


def test_prepare_tells_how_many_texts_are_too_long(config, monkeypatch):
    (line,) = long_text_lines(config)
    assert line == "talks (convsearch): longer than encoder.max_tokens 100: 2 of 3 queries, 2 of 5 passages"
    monkeypatch.setattr("embedder.run.too_long.SAMPLE", 2)
    (line,) = long_text_lines(config)
    assert "of 2 queries (a sample of 3)" in line and "of 2 passages (a sample of 5)" in line
    assert long_text_lines(config) == [line] and SAMPLE == 2000


def test_prepare_says_nothing_of_long_texts_where_the_tokenizer_is_not_here(config):
    for model in ("owner/name", "/nowhere/at/all", "s3://bucket/model"):
        encoder = config.encoder.model_copy(update={"model": model})
        assert long_text_lines(config.model_copy(update={"encoder": encoder})) == []


def test_vector_store_counts_exactly_what_was_cut_also_when_nothing_is_encoded_again(config, monkeypatch):
    def run_here(parts, actor, arguments, pool, label):
        worker = actor(*arguments)
        costs = [cost for part in parts for cost in worker(part).to_pylist()]
        return type("Cost", (), {"rows": sum(cost["rows"] for cost in costs)})

    def merge_here(ledgers):
        for ledger in ledgers:
            ledger.merge(vectors.MERGED_ROWS)

    monkeypatch.setattr(vectors, "run_blocks", run_here)
    monkeypatch.setattr(vectors, "_merge", merge_here)
    monkeypatch.setattr("embedder.models.onnx.load_inference_encoder", load_encoder)
    store = open_store(config, config.encoder)
    for encoded in (8, 0):
        assert vectors.fill_store(config, store, config.encoder, ["train", "test"]) == encoded
        work = encoding_work("mine", config.paths, config.encoder, lambda name: "")
        assert work.lines == ["talks: 5 passages, about 0 to encode"]
        (line,) = store.cut_lines(config.paths, ["train", "test"])
        assert line == "talks (convsearch): too long for the encoder and cut: 2 of 3 queries, 2 of 5 passages"
        assert store.cut_lines(config.paths, []) == [line.replace("2 of 3 queries, ", "")]


def test_vector_store_says_nothing_of_cuts_that_a_server_made(config):
    store = open_store(config, config.encoder)
    for table in missing_blocks(config.paths, store, []):
        for block in table.to_pylist():
            made = np.ones((block["rows"], 2), dtype=np.float32)
            store.ledger("talks", block["side"]).commit(vector_table(block, made, [None] * block["rows"]))
    assert store.cut_lines(config.paths, []) == []


def test_vector_store_keys_change_with_the_cut(config):
    table = next(iter(missing_blocks(config.paths, open_store(config, config.encoder), ["test"])))
    (first,) = table.to_pylist()
    keys = {first["row_ids"][0]}
    for cut in ("end", "start"):
        spec = config.tasks["convsearch"].model_copy(update={"query_cut": cut})
        changed = config.model_copy(update={"tasks": {**config.tasks, "convsearch": spec}})
        table = next(iter(missing_blocks(config.paths, open_store(changed, config.encoder), ["test"])))
        keys.add(table.to_pylist()[0]["row_ids"][0])
    assert len(keys) == 2  # a query of one line is the same in both orders


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_token_counter_counts_as_the_encoder_does(tmp_path, pooling):
    tokenizer = wrapped(byte_level(["<s>", "</s>"]), "<s> $A", ["<s>"], bos_token="<s>", eos_token="</s>")
    folder = llama_folder(tmp_path / "l", tokenizer)
    for most in range(8, 14):
        config = EncoderConfig(model=str(folder), pooling=pooling, max_tokens=most)
        counter, encoder = TokenCounter.of(config), load_encoder(config, device="cpu")
        texts = ["fox", "the fox", "the fox jumps", "the quick brown fox jumps over"]
        assert counter.too_long(texts) == sum(encoder.tokenize_and_tell(texts)[1])
