"""When a stage counts as done, and how rounds and lineage are told apart."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from embedder.config.load import load_run
from embedder.config.run import RunConfig
from embedder.errors import ConfigError
from embedder.index.catalog import Catalog
from embedder.run.lineage import read_lineage, write_lineage
from embedder.run.rounds import round_config
from embedder.run.stages import STAGES, Contents, effective, is_done, mark_done
from ray_jobs.pipeline import check, steps
from tests.unit.tiny_folders import write_jsonl

ROUND = ["mine", "label", "train"]


@pytest.fixture
def run_path(tmp_path: Path, tiny_encoder_folder: Path, tiny_llama_folder: Path) -> Path:
    """A run file with one source of three files."""
    source = tmp_path / "source"
    source.mkdir()
    write_jsonl(source / "corpus.jsonl", [{"id": "p", "text": "a passage"}])
    for split in ("train", "test"):
        write_jsonl(source / f"{split}.jsonl", [{"query": f"a query to {split}", "answers": ["an answer"]}])
    run = {
        "paths": {"work": str(tmp_path / "work"), "cache": str(tmp_path / "cache")},
        "encoder": {"model": str(tiny_encoder_folder), "pooling": "mean", "instructions": False, "max_tokens": 64},
        "llm": {"model": str(tiny_llama_folder)},
        "prepare": {"sources": [{"task": "qa", "dataset": "nq", "path": str(source)}]},
        "train": {"steps": 4},
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(run), encoding="utf-8")
    return path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def pretend_to_mine(config: RunConfig) -> None:
    """The files that mine reads and writes, and its mark."""
    write(config.paths.corpus / "nq" / "part-00000.parquet", "passages")
    write(config.paths.queries / "train" / "nq.parquet", "queries")
    write(config.paths.candidates / "nq.parquet", "groups")
    mark_done(STAGES["mine"], config, Contents())


def mine_is_done(config: RunConfig) -> bool:
    return is_done(STAGES["mine"], config, Contents())


def test_stage_is_done_until_its_settings_change(run_path):
    config = load_run(run_path)
    assert not mine_is_done(config)
    pretend_to_mine(config)
    assert mine_is_done(config)
    assert not mine_is_done(load_run(run_path, ["mine.seed=1"]))
    assert not mine_is_done(load_run(run_path, ["encoder.max_tokens=32"]))
    assert not mine_is_done(load_run(run_path, ["words.stop_words=english"]))


def test_stages_that_search_by_words_depend_on_their_settings():
    assert {name for name, stage in STAGES.items() if "words" in stage.sections} == {
        "questions",
        "mine",
        "index",
        "evaluate",
    }


def test_stage_does_not_depend_on_machines_and_settings_of_other_stages(run_path):
    pretend_to_mine(load_run(run_path))
    assert mine_is_done(load_run(run_path, ["encoder.num_actors=7", "encoder.gpus_per_actor=1", "train.steps=9"]))


@pytest.mark.parametrize("changed", ["prepared/corpus/nq/part-00000.parquet", "candidates/nq.parquet"])
def test_stage_is_not_done_when_what_it_read_or_wrote_has_changed(run_path, changed):
    config = load_run(run_path)
    pretend_to_mine(config)
    path = config.paths.work / changed
    before = path.read_text(encoding="utf-8")
    path.write_text("other", encoding="utf-8")
    assert not mine_is_done(config)
    path.write_text(before, encoding="utf-8")
    assert mine_is_done(config)
    path.unlink()
    assert not mine_is_done(config)


def test_contents_do_not_depend_on_unfinished_files_and_times(run_path):
    config = load_run(run_path)
    pretend_to_mine(config)
    write(config.paths.candidates / ".nq.parquet.0123", "half")
    (config.paths.candidates / "nq.parquet").touch()
    assert mine_is_done(config)


def test_stage_index_stays_done_when_its_alias_moves_and_not_when_it_was_removed(run_path):
    config = load_run(run_path)
    config = config.model_copy(update={"index": config.index.model_copy(update={"model": config.encoder.model})})
    write(config.paths.corpus / "nq" / "part-00000.parquet", "passages")
    catalog = Catalog(config.paths.indexes)
    for version in ("one", "two"):
        write(catalog.bundle(version) / "manifest.json", version)

    def is_built() -> bool:
        return is_done(STAGES["index"], config, Contents())

    mark_done(STAGES["index"], config, Contents())
    assert not is_built()
    catalog.point("live", "one")
    catalog.mark_built("one")
    mark_done(STAGES["index"], config, Contents())
    assert is_built()
    catalog.point("live", "two")
    assert is_built()
    catalog.point("live", "two")
    (catalog.bundle("one") / "manifest.json").unlink()
    assert not is_built()


def test_stage_train_is_not_done_when_a_replayed_run_has_changed(run_path, tmp_path):
    earlier, replay = tmp_path / "earlier", "train.replay={runs: [{work: %s}], share: 0.2}"
    config = load_run(run_path, [replay % earlier])
    for path in ("labelled/blocks/a.parquet", "candidates/nq.parquet"):
        write(earlier / path, "old")
        write(config.paths.work / path, "new")
    write(config.paths.model / "model.safetensors", "weights")
    mark_done(STAGES["train"], config, Contents())
    assert is_done(STAGES["train"], config, Contents())
    assert is_done(STAGES["train"], load_run(run_path, [replay % earlier, "train.tensorboard=true"]), Contents())
    write(earlier / "labelled/blocks/a.parquet", "relabelled")
    assert not is_done(STAGES["train"], config, Contents())


def test_effective_settings_leave_out_resources_at_any_depth():
    assert effective({"num_actors": 3, "part": [{"batch_tokens": 1, "seed": 0}]}) == {"part": [{"seed": 0}]}


def test_contents_tell_a_model_from_its_folder(tiny_encoder_folder):
    first, second = Contents(), Contents()
    folder = first.of(tiny_encoder_folder)
    assert first.of_model(str(tiny_encoder_folder)) == second.of_model(str(tiny_encoder_folder)) != folder


def test_pipeline_of_one_round_has_the_stages_of_the_readme(run_path):
    assert [step.title for step in steps(load_run(run_path))] == ["prepare", *ROUND, "index", "evaluate"]


def test_pipeline_rounds_start_from_the_encoder_before_and_overwrite_nothing(run_path):
    config = load_run(run_path, ["pipeline.rounds=3", "encoder.instructions=learned"])
    planned = steps(config)
    repeated = [f"{stage}, round {number}" for number in (2, 3) for stage in ROUND]
    assert [step.title for step in planned] == ["prepare", *ROUND, *repeated, "index, round 3", "evaluate, round 3"]
    third = round_config(config, 3)
    assert third.encoder.model == str(config.paths.work / "rounds" / "02" / "model")
    assert third.encoder.instructions is True and config.encoder.instructions == "learned"
    assert not round_config(load_run(run_path), 2).encoder.instructions
    assert round_config(config, 2).encoder.model == str(config.paths.model)
    written = [
        {path for stage in ROUND for path in STAGES[stage].writes(round_config(config, number))} for number in (1, 2, 3)
    ]
    assert not written[0] & written[1] and not written[1] & written[2]
    assert third.paths.corpus == config.paths.corpus and third.paths.indexes == config.paths.indexes
    assert planned[-1].config.encoder == config.encoder and planned[-1].config.paths.model == third.paths.model


def test_pipeline_counts_the_rounds_itself(run_path):
    with pytest.raises(ConfigError, match=r"paths\.round is 2"):
        check(load_run(run_path, ["paths.round=2"]))


def test_pipeline_dry_run_says_what_is_done(run_path):
    config = load_run(run_path)
    write(config.paths.corpus / "nq" / "part-00000.parquet", "passages")
    write(config.paths.queries / "train" / "nq.parquet", "queries")
    mark_done(STAGES["prepare"], config, Contents())
    lines = check(config).lines
    assert "prepare: done before" in lines and "mine: to run" in lines and "evaluate: to run" in lines
    mark_done(STAGES["label"], config, Contents())
    assert "label: to run if what it reads changes" in check(config).lines


def test_lineage_leads_from_an_encoder_back_to_labels_llm_data_and_the_encoder_before(run_path):
    config = load_run(run_path, ["pipeline.rounds=2"])
    for number in (1, 2):
        of_round = round_config(config, number)
        pretend_to_mine(of_round)
        write(of_round.paths.labelled / "provenance.json", json.dumps({"fingerprint": f"labels {number}"}))
        for path in Path(config.encoder.model).iterdir():
            of_round.paths.model.mkdir(parents=True, exist_ok=True)
            (of_round.paths.model / path.name).write_bytes(path.read_bytes())
        write(of_round.paths.model / "lineage.json", json.dumps({"training_run": f"run {number}"}))
        write_lineage(of_round, Contents())
    second = read_lineage(round_config(config, 2).paths.model)
    first = second["encoder"]["lineage"]
    assert [second["training_run"], first["training_run"]] == ["run 2", "run 1"]
    assert [lineage["labels"]["provenance"]["fingerprint"] for lineage in (second, first)] == ["labels 2", "labels 1"]
    assert first["encoder"]["model"] == config.encoder.model and first["encoder"]["lineage"] is None
    assert second["labels"]["llm"]["fingerprint"] == Contents().of_model(config.llm.model)
    assert second["sources"][0]["content"] == Contents().of(config.prepare.sources[0].path)
    assert second["settings"]["train"]["steps"] == 4


def test_training_with_a_control_is_done_only_where_both_encoders_are(run_path):
    config, alone = load_run(run_path, ["train.control=true"]), load_run(run_path)
    write(config.paths.queries / "train" / "nq.parquet", "queries")
    write(config.paths.candidates / "nq.parquet", "groups")
    write(config.paths.labelled / "blocks" / "a.parquet", "labels")
    write(config.paths.model / "weights", "trained")
    mark_done(STAGES["train"], config, Contents())
    assert not is_done(STAGES["train"], config, Contents())
    write(config.paths.control / "weights", "control")
    mark_done(STAGES["train"], config, Contents())
    assert is_done(STAGES["train"], config, Contents())
    assert not is_done(STAGES["train"], alone, Contents())
    write(config.paths.control / "weights", "another")
    assert not is_done(STAGES["train"], config, Contents())
