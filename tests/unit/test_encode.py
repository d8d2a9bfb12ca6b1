"""Texts to vectors: the instruction of the task and side stands before every text, in training as in serving."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from embedder.config.run import RunConfig
from embedder.config.tasks import BUILTIN_TASKS, TaskSpec
from embedder.models.encoder import encode, encode_prompted, load_encoder
from embedder.training.batch_plan import BatchPart
from embedder.training.row_files import write_training_rows
from embedder.training.training_rows import TrainingRows
from ray_jobs.retrieval.vectors import open_store
from tests.unit.judges import quick

texts = st.lists(st.text(st.characters(codec="utf-8"), max_size=12), min_size=1, max_size=4)
sides = st.sampled_from(["query", "passage"])


@pytest.fixture(scope="module")
def encoder(tiny_encoder):
    return load_encoder(tiny_encoder, device="cpu")


@quick
@given(texts, st.sampled_from(sorted(BUILTIN_TASKS)), sides)
def test_encode_gives_the_vector_of_instruction_and_text(encoder, read, task, side):
    spec = BUILTIN_TASKS[task].model_copy(update={"query_cut": "end"})
    instruction = spec.query_instruction if side == "query" else spec.passage_instruction
    assert instruction
    with torch.inference_mode():
        expected = encoder(encoder.tokenize([instruction + text for text in read])).numpy()
    assert np.allclose(encode(encoder, read, spec, side), expected, atol=1e-6)


@quick
@given(texts, sides)
def test_encode_without_an_instruction_takes_the_text_alone(encoder, read, side):
    bare = TaskSpec(query_instruction="", passage_instruction="")
    assert np.allclose(encode(encoder, read, bare, side), encode_prompted(encoder, read), atol=1e-6)
    assert not np.allclose(encode(encoder, read, BUILTIN_TASKS["qa"], side), encode_prompted(encoder, read), atol=1e-3)


@pytest.mark.parametrize("task", sorted(BUILTIN_TASKS))
def test_encode_reads_in_serving_what_training_reads(encoder, tmp_path, task):
    group = {"task": task, "dataset": "set", "query_id": "0", "query": "the fox", "candidate_ids": ["a", "b"]}
    group |= {"candidate_texts": ["the dog", "a list"], "relevance": [1, 0], "rewards": [2.0, 0.0], "error": None}
    group["answers"] = ["a list"]
    write_training_rows([group], BUILTIN_TASKS, tmp_path / "rows.arrow", {})
    batch = TrainingRows(tmp_path / "rows.arrow").batch([BatchPart(task, [0])])
    trained = encoder(encoder.tokenize(batch.prompted(BUILTIN_TASKS))).detach().numpy()
    served = [encode(encoder, ["the fox"], BUILTIN_TASKS[task], "query")]
    served.append(encode(encoder, ["the dog", "a list"], BUILTIN_TASKS[task], "passage"))
    assert np.allclose(trained, np.concatenate(served), atol=1e-6)


@pytest.mark.parametrize(("setting", "knows", "learns"), [(True, True, True), ("learned", False, True), (False,) * 3])
def test_encode_gives_instructions_only_to_an_encoder_that_knows_them(
    tiny_encoder, tmp_path, tiny_encoder_folder, setting, knows, learns
):
    base = tiny_encoder.model_copy(update={"instructions": setting})
    (tmp_path / "model").symlink_to(tiny_encoder_folder)
    config = RunConfig(paths={"work": str(tmp_path), "cache": str(tmp_path)}, encoder=base)
    for encoder, told in ((base, knows), (base.model_copy(update={"model": str(tmp_path / "model")}), learns)):
        tasks = open_store(config, encoder).tasks
        for name, spec in BUILTIN_TASKS.items():
            found = (tasks[name].instruction("query"), tasks[name].instruction("passage"))
            assert found == ((spec.query_instruction, spec.passage_instruction) if told else ("", ""))
