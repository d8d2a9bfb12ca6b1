"""Files of `questions` beside those of `prepare`: told apart, replaced, and gone when they are no longer wanted."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from embedder.config.questions import QuestionsConfig
from embedder.config.run import RunConfig
from embedder.data.records import PASSAGE, QUERY, read_tables, write_table
from embedder.data.rows import passage_row, query_row
from embedder.errors import ConfigError
from embedder.run.stages import STAGES, Contents, is_done, mark_done
from embedder.run.written import forget_written, prepared_files, written_files
from embedder.writing.spread import nearest_partner, spread_over_clusters
from ray_jobs.pipeline import with_questions
from ray_jobs.prepare import read_sources
from ray_jobs.retrieval.vectors import open_store
from ray_jobs.writing.asked_passages import AskedDataset, asked_datasets, is_kept_for_test, passages_with_kinds
from ray_jobs.writing.question_files import write_queries


@pytest.fixture
def bare(tmp_path, tiny_encoder_folder, tiny_llama_folder):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("A tower stands by the sea.", encoding="utf-8")

    def run(**sections):
        source = {"task": "qa", "dataset": "texts", "path": str(tmp_path / "texts"), "format": "documents"}
        given = {
            "paths": {"work": str(tmp_path / "work"), "cache": str(tmp_path / "cache")},
            "encoder": {"model": str(tiny_encoder_folder), "pooling": "mean", "max_tokens": 64},
            "llm": {"model": str(tiny_llama_folder)},
            "prepare": {"sources": [source]},
            "questions": {},
        }
        return RunConfig.model_validate({**given, **sections})

    return run


def question(config, number):
    return query_row(config.prepare.sources[0], f"q{number}", f"question {number}?", answers=["a"])


def test_prepare_stays_done_while_questions_are_written_and_is_not_when_they_are_too_many(bare, tmp_path):
    config, contents = bare(), Contents()
    (config.paths.corpus / "texts").mkdir(parents=True)
    (config.paths.corpus / "texts" / "part.parquet").write_bytes(b"passages")
    mark_done(STAGES["prepare"], config, contents)
    write_queries(config.paths, {"texts": {"train": [question(config, 1)], "test": [question(config, 2)]}})
    contents.forget()
    assert is_done(STAGES["prepare"], config, contents) and not prepared_files(config.paths)
    mark_done(STAGES["questions"], config, contents)
    assert is_done(STAGES["questions"], config, contents)
    assert not is_done(STAGES["prepare"], bare(questions=None), contents)
    write_queries(config.paths, {"texts": {"train": [question(config, 3)]}})
    (path,) = written_files(config.paths)
    assert read_tables([path], QUERY)["query_id"].to_pylist() == ["q3"]
    forget_written(config.paths)
    contents.forget()
    assert not written_files(config.paths) and not path.exists()
    assert not is_done(STAGES["questions"], config, contents)


def test_files_that_prepare_wrote_are_left_alone(bare):
    config = bare()
    path = config.paths.queries / "test" / "texts.parquet"
    write_table([question(config, 1)], QUERY, path)
    write_queries(config.paths, {"texts": {"train": [question(config, 2)]}})
    forget_written(config.paths)
    assert prepared_files(config.paths) == [path]


def test_a_run_without_an_llm_writes_no_questions(bare):
    with pytest.raises(ValueError, match="`questions` needs an LLM"):
        bare(llm=None)


def test_the_pipeline_knows_ahead_which_queries_there_will_be(bare):
    config = bare()
    rows = with_questions(config, read_sources(config))["texts"]
    assert rows.splits == {"train", "test"} and rows.learns
    sources = [config.prepare.sources[0].model_copy(update={"task": "icl"})]
    labelled = bare(prepare=config.prepare.model_copy(update={"sources": sources}))
    with pytest.raises(ConfigError, match="no questions can be written for task 'icl', since its queries are examples"):
        with_questions(labelled, read_sources(labelled))


def test_passages_are_spread_over_clusters_whatever_the_sizes_of_these():
    random = np.random.default_rng(0)
    centres = np.eye(8, dtype=np.float32)[:4]
    sizes = [200, 20, 20, 20]
    vectors = np.concatenate(
        [centre + 0.05 * random.normal(size=(size, 8)) for centre, size in zip(centres, sizes, strict=True)]
    ).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    chosen = spread_over_clusters(vectors, 16, seed=1)
    assert len(set(chosen)) == 16
    counts = np.bincount(vectors[chosen][:, :4].argmax(1), minlength=4)
    assert counts.min() >= 2 and chosen == spread_over_clusters(vectors, 16, seed=1)
    assert spread_over_clusters(vectors[:3], 16, seed=1) == [0, 1, 2]


def test_a_partner_is_near_but_not_the_same_and_on_the_same_side():
    vectors = np.array([[1, 0], [0.999, 0.04], [0.8, 0.6], [0, 1]], dtype=np.float32)
    everything = np.ones(4, dtype=bool)
    assert nearest_partner(vectors, 0, everything) == 2
    assert nearest_partner(vectors, 0, np.array([True, True, False, True])) == 3
    assert nearest_partner(vectors, 0, np.array([True, True, False, False])) is None


def test_what_is_asked_leaves_out_measured_and_short_passages_and_pairs_those_of_one_side(bare, tmp_path):
    config = bare(questions={"passages": 4, "kinds": ["fact", "two_passages"], "least_words": 3})
    source = config.prepare.sources[0]
    texts = {
        "a": "one two three",
        "b": "four five six",
        "c": "seven eight nine",
        "d": "ten eleven twelve",
        "e": "short",
    }
    passages = [passage_row(source, name, text) for name, text in texts.items()]
    write_table(passages, PASSAGE, config.paths.corpus / "texts" / "part-00000.parquet")
    measured = {**question(config, 1), "positive_ids": ["d"]}
    write_table([measured], QUERY, config.paths.queries / "test" / "texts.parquet")
    store = open_store(config, config.encoder)
    table = read_tables([config.paths.corpus / "texts" / "part-00000.parquet"], PASSAGE)
    angles = {"a": 0.0, "b": 0.5, "c": 1.4, "d": 0.1, "e": 0.2}
    rows = [
        {"dataset": "texts", "row_id": key, "id": name, "is_cut": False, "vector": [np.cos(angle), np.sin(angle)]}
        for key, (name, angle) in zip(store.keys(table, "passage"), angles.items(), strict=True)
    ]
    store.ledger("texts", "passage").commit(rows)
    (dataset,) = asked_datasets(config)
    assert (dataset.kinds, dataset.has_test) == (("fact", "two_passages"), False)
    asked, alone = passages_with_kinds(config, store, dataset)
    assert alone == 0 and sorted(row["passage_ids"] for row in asked) == [
        ["a"],
        ["a", "b"],
        ["b"],
        ["b", "a"],
        ["c"],
        ["c", "b"],
    ]
    assert all(row["texts"] == [texts[name] for name in row["passage_ids"]] for row in asked)


def test_passages_for_test_queries_are_a_share_that_depends_on_the_seed_alone():
    dataset = AskedDataset("texts", "qa", ("fact",), 1000, has_test=True)
    settings = QuestionsConfig(test_share=0.3)
    kept = {name for name in map(str, range(1000)) if is_kept_for_test(name, dataset, settings)}
    assert 240 < len(kept) < 360
    assert not any(is_kept_for_test(name, replace(dataset, has_test=False), settings) for name in kept)
