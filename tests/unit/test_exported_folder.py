"""The exported folder in the eyes of other tools: pooling in both forms, and which task the plain prompts are of."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer

from embedder.config.tasks import BUILTIN_TASKS
from embedder.config.train import TrainConfig
from embedder.errors import ModelError
from embedder.models.encoder import encode, load_encoder
from embedder.models.encoder_export import choose_plain_task, export_encoder, main
from embedder.models.st_folder import plain_task_of, read_folder
from embedder.training.job import TrainingJob
from embedder.training.loop import train
from embedder.training.row_files import write_training_rows
from tests.unit.test_not_finite import labelled, make_training
from tests.unit.tiny_folders import bert_folder, byte_level, llama_folder, wrapped

TEXTS = ["the fox jumps", "Speaker 1: where is the station?", ""]


def exported(tiny_encoder, folder, tasks=BUILTIN_TASKS, plain=None, pooling="mean"):
    encoder = load_encoder(tiny_encoder.model_copy(update={"pooling": pooling}), device="cpu")
    export_encoder(encoder, folder, tasks, plain)
    return encoder


def assert_serves(encoder, model, task):
    other = SentenceTransformer(str(model), device="cpu")
    for found, side in ((other.encode_query(TEXTS), "query"), (other.encode_document(TEXTS), "passage")):
        np.testing.assert_allclose(found, encode(encoder, TEXTS, BUILTIN_TASKS[task], side), atol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_export_writes_the_pooling_in_the_older_form_too(tiny_encoder, tmp_path, pooling):
    """case 32-pooling-for-other-servers"""
    exported(tiny_encoder, tmp_path / "m", pooling=pooling)
    config = json.loads((tmp_path / "m/1_Pooling/config.json").read_text(encoding="utf-8"))
    flags = {name: on for name, on in config.items() if name.startswith("pooling_mode_")}
    wanted = {"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token", "last": "pooling_mode_lasttoken"}
    assert {name for name, on in flags.items() if on} == {wanted[pooling]}
    # text-embeddings-inference needs these two, and vLLM takes the first value that is true.
    assert {"pooling_mode_cls_token", "pooling_mode_mean_tokens"} <= flags.keys()
    assert next(name for name, on in config.items() if on is True) == wanted[pooling]
    assert read_folder(str(tmp_path / "m")).pooling == pooling


@pytest.mark.parametrize("task", sorted(BUILTIN_TASKS))
def test_export_of_one_task_is_read_by_encode_query_and_encode_document(tiny_encoder, tmp_path, task):
    encoder = exported(tiny_encoder, tmp_path / "m", {task: BUILTIN_TASKS[task]})
    assert_serves(encoder, tmp_path / "m", task)


def test_export_of_several_tasks_serves_the_chosen_one_until_another_is(tiny_encoder, tmp_path, capsys):
    encoder = exported(tiny_encoder, tmp_path / "m", plain="tool")
    assert_serves(encoder, tmp_path / "m", "tool")
    main([str(tmp_path / "m"), "--task", "icl"])
    assert "prompts of icl" in capsys.readouterr().out
    assert_serves(encoder, tmp_path / "m", "icl")
    facts = read_folder(str(tmp_path / "m"))
    for name, spec in BUILTIN_TASKS.items():
        for side in ("query", "passage"):
            assert facts.prompt(name, side) == spec.instruction(side)
    assert facts.prompt("unknown", "query") == ""


def test_choose_plain_task_refuses_what_it_does_not_know(tiny_encoder, tmp_path):
    exported(tiny_encoder, tmp_path / "m")
    with pytest.raises(ModelError, match="no prompts of task 'other'; known are"):
        choose_plain_task(tmp_path / "m", "other")
    with pytest.raises(ModelError, match="no prompts of an exported encoder"):
        choose_plain_task(tmp_path, "qa")


def test_plain_task_is_the_first_trained_one_in_the_built_in_order():
    assert plain_task_of({"tool": 1, "chat": 1}) == "chat"
    assert plain_task_of(["zeta", "alpha"]) == "alpha"
    assert plain_task_of(["zeta", "icl"]) == "icl"
    assert plain_task_of(["qa"], "tool") == "tool"


@pytest.mark.parametrize(("wanted", "task"), [(None, "tool"), ("chat", "chat")])
def test_training_exports_the_plain_prompts_of_what_it_trained(tmp_path, wanted, task):
    model = bert_folder(tmp_path / "b")
    job = make_training(tmp_path, model, steps=1, export_task=wanted)
    write_training_rows([row | {"task": "tool"} for row in labelled(4)], BUILTIN_TASKS, job.rows, {})
    train(job, lambda metrics: None)
    assert read_folder(str(job.exported)).prompts["query"] == BUILTIN_TASKS[task].query_instruction
    assert json.loads((job.exported / "config.json").read_text(encoding="utf-8"))["architectures"] == ["BertModel"]


def test_training_with_lora_and_recomputation_is_that_without(tmp_path):
    """case 53-lora-with-recomputation"""
    tokenizer = wrapped(
        byte_level(["<s>", "</s>", "<pad>"]), "<s> $A </s>", ["<s>", "</s>"], pad_token="<pad>", eos_token="</s>"
    )
    model = llama_folder(tmp_path / "l", tokenizer)
    found = []
    for recomputes in (False, True):
        folder = tmp_path / f"run-{recomputes}"
        folder.mkdir()
        settings = {"steps": 2, "batch_size": 4, "learning_rate": 1e-2, "num_workers": 1, "lora": {"rank": 4}}
        config = TrainConfig(**settings, gradient_checkpointing=recomputes)
        job = make_training(folder, model)
        encoder = job.encoder.model_copy(update={"pooling": "last"})
        train(TrainingJob(encoder, BUILTIN_TASKS, config, job.folder), lambda metrics: None)
        found.append(load_file(job.exported / "model.safetensors"))
    base = {name.removeprefix("model."): weight for name, weight in load_file(model / "model.safetensors").items()}
    names = sorted(base.keys() & found[0].keys())
    assert len(names) > 10
    assert sum(float((base[name] - found[1][name]).abs().max()) > 1e-6 for name in names) > 5
    assert max(float((found[0][name] - found[1][name]).abs().max()) for name in names) < 1e-4
