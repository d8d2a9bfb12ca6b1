"""What the pipeline's check refuses before the first stage, what it leaves out, and what its dry run says of costs."""

from __future__ import annotations

import pytest
import yaml

from embedder.config.load import load_run
from embedder.data.records import PASSAGE, QUERY, write_table
from embedder.errors import ConfigError, DataError, EmbedderError
from embedder.run.stages import STAGES, Contents, mark_done
from ray_jobs import evaluate, index, mine, pipeline, prepare
from tests.unit.tiny_folders import write_jsonl


@pytest.fixture
def write_run(tmp_path, tiny_encoder_folder, tiny_llama_folder):
    """Writes a run file as that of the quick start: a source with corpus and train, and no test file."""
    source = tmp_path / "handbook"
    write_jsonl(source / "corpus.jsonl", [{"id": f"p{i}", "text": f"passage {i}"} for i in range(3)])
    write_jsonl(source / "train.jsonl", [{"query": f"question {i}", "answers": [f"answer {i}"]} for i in range(3)])

    def write(source_fields=None, **sections):
        run = {
            "paths": {"work": str(tmp_path / "work"), "cache": str(tmp_path / "cache")},
            "encoder": {"model": str(tiny_encoder_folder), "pooling": "mean", "instructions": False, "max_tokens": 60},
            "llm": {"model": str(tiny_llama_folder)},
            "prepare": {
                "sources": [{"task": "qa", "dataset": "handbook", "path": str(source)} | (source_fields or {})]
            },
            "train": {"steps": 4},
            **sections,
        }
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump({key: value for key, value in run.items() if value}), encoding="utf-8")
        return load_run(path)

    return write


def with_test_rows(config):
    write_jsonl(config.prepare.sources[0].path / "test.jsonl", [{"query": "tested", "answers": ["yes"]}])


def prepared(config, **splits):
    """The tables that `prepare` leaves, with so many queries of each split."""
    passages = [
        {**dict.fromkeys(PASSAGE.names), "task": "qa", "dataset": "handbook", "id": "p", "text": "four" * 50}
    ] * 3
    write_table(passages, PASSAGE, config.paths.corpus / "handbook" / "part-00000.parquet")
    for split, count in splits.items():
        rows = [
            {**dict.fromkeys(QUERY.names), "task": "qa", "dataset": "handbook", "query_id": "q", "query": "q"}
        ] * count
        write_table(rows, QUERY, config.paths.queries / split / "handbook.parquet")


LEFT_OUT = "evaluate: left out, since no source has test queries; give a source of prepare.sources a test file, or let"


def test_pipeline_leaves_evaluate_out_where_no_source_has_queries_of_its_split(write_run):
    config = write_run()
    lines = pipeline.check(config).lines
    assert any(line.startswith(LEFT_OUT) for line in lines) and "index: to run" in lines
    with_test_rows(config)
    assert "evaluate: to run" in pipeline.check(config).lines
    assert any(line.startswith(LEFT_OUT) for line in pipeline.check(write_run({"test_queries": 0})).lines)
    of_dev = pipeline.check(write_run({"dev_queries": 1}, evaluate={"split": "dev"})).lines
    assert "evaluate: to run" in of_dev


def test_pipeline_knows_before_its_first_stage_what_gpus_the_later_ones_ask_for(write_run):
    work = pipeline.check(write_run(label={"gpus_per_actor": 1}))
    assert {share.setting: share.gpus for share in work.shares if share.gpus} == {"label.gpus_per_actor": 1.0}


def test_pipeline_that_left_evaluate_out_ends_well_with_a_note(write_run, monkeypatch):
    config, ran = write_run(), []

    def run_stage(job, config, work):
        ran.append(job.stage)
        if job is prepare.JOB:
            prepared(config, train=3)

    monkeypatch.setattr(pipeline, "run_stage", run_stage)
    monkeypatch.setattr(pipeline, "mark_done", lambda *_: None)
    monkeypatch.setattr(pipeline, "write_lineage", lambda *_: None)
    unchecked = [pipeline.Step(_unchecked(step.job), step.config) for step in pipeline.steps(config)]
    monkeypatch.setattr(pipeline, "steps", lambda _: unchecked)
    report = pipeline.run(config)
    assert ran == ["prepare", "mine", "label", "train", "index"]
    assert report.lines[0] == "5 of 5 stages run, 0 were done before" and report.lines[1].startswith(LEFT_OUT)


def _unchecked(job):
    """A job that does not check the tables of others; those that the pipeline tells by identity stay what they are."""
    if job in (prepare.JOB, evaluate.JOB):
        return job
    return type(job)(job.stage, job.manual, lambda config: None, job.run)


def test_evaluate_alone_without_queries_is_refused_with_the_remedy(write_run):
    config = write_run()
    prepared(config, train=3)
    with pytest.raises(DataError, match=r"no test queries; give a source .* a test file, or let it keep dev_queries"):
        evaluate.check(config)


def test_prepare_refuses_beir_under_a_task_with_a_reward(write_run, tmp_path):
    folder = tmp_path / "beir"
    write_jsonl(folder / "corpus.jsonl", [{"_id": "a", "text": "passage"}])
    write_jsonl(folder / "queries.jsonl", [{"_id": "q", "text": "question"}])
    (folder / "qrels").mkdir()
    (folder / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\nq\ta\t1\n")
    source = {"path": str(folder), "format": "beir"}
    for check in (prepare.check, pipeline.check):
        with pytest.raises(ConfigError, match=r"set tasks\.qa\.reward: none and tasks\.qa\.loss: contrastive"):
            check(write_run(source))
    assert pipeline.check(write_run(source, tasks={"qa": {"reward": "own_answers"}}))
    learned = {"qa": {"reward": "none", "loss": "contrastive"}}
    assert pipeline.check(write_run(source, tasks=learned, llm=None))
    (folder / "qrels" / "train.tsv").rename(folder / "qrels" / "test.tsv")
    assert prepare.check(write_run(source))


REFUSED = {
    "no llm": ({"llm": None}, "no `llm` section"),
    "no llm to evaluate with": (
        {"llm": None, "tasks": {"qa": {"reward": "none", "loss": "contrastive"}}, "evaluate": {"llm_queries": 3}},
        "evaluate.llm_queries needs an `llm` section",
    ),
    "imported without scores": ({"label": {"teacher": "imported"}}, "teacher_scores: true"),
    "no reranker": (
        {"label": {"teacher": "reranker"}, "reranker": {"model": "/nowhere"}},
        "/nowhere: no such folder",
    ),
    "no model to index": ({"index": {"model": "/nowhere"}}, "/nowhere: no such folder"),
    "a retriever that is not there": (
        {"evaluate": {"retrievers": ["base", {"name": "other", "model": "/nowhere"}]}},
        "/nowhere",
    ),
    "an evaluation of nothing": (
        {"evaluate": {"evaluations": {"other": "qa"}}},
        r"evaluate.evaluations names \['other'\]",
    ),
    "weights for others": ({"train": {"steps": 4, "task_weights": {"tool": 1.0}}}, r"only tasks \['qa'\] have"),
    "no run to replay": (
        {"train": {"steps": 4, "replay": {"runs": [{"work": "/nowhere"}], "share": 0.5}}},
        "/nowhere/candidates holds no candidates",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_pipeline_refuses_first_what_a_later_stage_would_refuse(write_run, name):
    sections, reason = REFUSED[name]
    config = write_run(**sections)
    write_jsonl(
        config.prepare.sources[0].path / "train.jsonl", [{"query": "question", "answers": ["yes"], "pos_ids": ["p0"]}]
    )
    with_test_rows(config)
    with pytest.raises(EmbedderError, match=reason) as refused:
        pipeline.check(config)
    assert "\n" not in str(refused.value)


def test_pipeline_refuses_sources_that_nothing_can_be_learned_from(write_run):
    with pytest.raises(ConfigError, match="no source has a training row to learn from"):
        pipeline.check(write_run({"train_queries": 0}))
    with pytest.raises(ConfigError, match="no source has a training row to learn from"):
        pipeline.check(write_run({"task": "tool"}))


def test_pipeline_dry_run_says_what_the_next_stage_costs_and_that_the_others_are_not_known(write_run):
    config = write_run()
    assert pipeline.rehearse(config) == [
        "prepare needs no model; what the other stages cost is known when the one before has run"
    ]
    assert pipeline.check(config).flops == 0 and not pipeline.check(config).estimate()
    prepared(config, train=3)
    mark_done(STAGES["prepare"], config, Contents())
    told = pipeline.rehearse(config)
    assert told[0].startswith("mine: handbook: 3 passages, about 3 to encode, 3 train queries")
    # 200 characters that the tokenizer does not put together, cut to 60 tokens.
    assert told[1].startswith("mine: about 180 tokens, ") and "FLOP of model work" in told[1]
    assert told[2] == "what the stages after it cost is known when it has run"


def test_mine_without_training_queries_is_refused(write_run):
    config = write_run()
    prepared(config, test=1)
    with pytest.raises(DataError, match="no training queries; give a source"):
        mine.check(config)


def test_index_before_training_says_to_train_first(write_run):
    config = write_run()
    prepared(config, train=1)
    with pytest.raises(EmbedderError, match=r"no trained encoder; run `python -m ray_jobs\.train` first"):
        index.check(config)
