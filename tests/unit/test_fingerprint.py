"""What changes a result changes its fingerprint, and nothing else does."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from embedder.config.label import LabelConfig
from embedder.config.run import RunConfig
from embedder.config.tasks import BUILTIN_TASKS
from embedder.models.fingerprint import encoder_fingerprint, label_fingerprint
from ray_jobs.retrieval.vectors import VectorStore, open_store

QA = BUILTIN_TASKS["qa"]


@pytest.mark.parametrize(
    ("field", "value", "differs"), [("pooling", "cls", True), ("max_tokens", 32, True), ("batch_tokens", 999, False)]
)
def test_encoder_fingerprint_is_of_weights_pooling_and_truncation(tiny_encoder, field, value, differs):
    other = tiny_encoder.model_copy(update={field: value})
    assert (encoder_fingerprint(other) != encoder_fingerprint(tiny_encoder)) == differs


@pytest.mark.parametrize(("field", "differs"), [("passage_instruction", True), ("query_instruction", False)])
def test_vectors_fingerprint_is_of_encoder_and_passage_instruction(field, differs):
    passage = pa.table({"task": ["qa"], "id": ["p"], "text": ["text"]})
    specs = (QA, QA.model_copy(update={field: "other "}))
    one, other = (VectorStore(Path("e"), {"qa": spec}).keys(passage, "passage") for spec in specs)
    assert (one != other) == differs


def test_vectors_of_two_encoders_lie_apart(tmp_path, tiny_encoder):
    config = RunConfig(paths={"work": tmp_path}, encoder=tiny_encoder)
    other = tiny_encoder.model_copy(update={"pooling": "cls"})
    assert open_store(config, other).folder != open_store(config, tiny_encoder).folder


@pytest.mark.parametrize(
    ("field", "value", "differs"),
    [
        ("num_samples", 3, True),
        ("temperature", 0.5, True),
        ("top_k", 7, True),
        ("top_p", 0.9, True),
        ("seed", 9, True),
        ("block_rows", 3, False),
        ("unit_groups", 3, False),
        ("min_actors", 1, False),
        ("cpus_per_actor", 3, False),
        ("recompute", True, False),
        ("num_actors", 5, False),
        ("max_error_share", 0.5, False),
    ],
)
def test_label_fingerprint_is_of_the_sampling_but_not_of_the_way_work_is_cut(tiny_llm, field, value, differs):
    label = LabelConfig()
    other = label.model_copy(update={field: value})
    before = label_fingerprint(tiny_llm, label, BUILTIN_TASKS)
    assert (label_fingerprint(tiny_llm, other, BUILTIN_TASKS) != before) == differs


@pytest.mark.parametrize(
    ("field", "value", "differs"),
    [("dtype", "bfloat16", True), ("max_prefix_tokens", 99, True), ("batch_tokens", 99, False)],
)
def test_label_fingerprint_is_of_the_llm_but_not_of_its_batches(tiny_llm, field, value, differs):
    other = tiny_llm.model_copy(update={field: value})
    before = label_fingerprint(tiny_llm, LabelConfig(), BUILTIN_TASKS)
    assert (label_fingerprint(other, LabelConfig(), BUILTIN_TASKS) != before) == differs


@pytest.mark.parametrize(
    ("field", "value", "differs"),
    [
        ("template", QA.template.model_copy(update={"input": "Question: {query} Answer:"}), True),
        ("template", QA.template.model_copy(update={"stop": ()}), True),
        ("template", QA.template.model_copy(update={"chat": True}), True),
        ("shots", 1, True),
        ("reward", "likelihood", False),
        ("max_output_tokens", 3, True),
        ("loss", "kl", False),
        ("reward_temperature", 3.0, False),
        ("query_instruction", "other ", False),
    ],
)
def test_label_fingerprint_is_of_the_prompts_but_not_of_the_training(tiny_llm, field, value, differs):
    tasks = {"qa": QA.model_copy(update={field: value})}
    before = label_fingerprint(tiny_llm, LabelConfig(), {"qa": QA})
    assert (label_fingerprint(tiny_llm, LabelConfig(), tasks) != before) == differs


def test_label_fingerprint_is_the_same_for_stop_texts_read_from_a_file(tiny_llm):
    """The resolved run file holds a list where the setting is a tuple."""
    template = QA.template.model_validate(QA.template.model_dump(mode="json"))
    tasks = [{"qa": QA.model_copy(update={"template": each})} for each in (QA.template, template)]
    one, other = (label_fingerprint(tiny_llm, LabelConfig(), each) for each in tasks)
    assert one == other


def test_label_fingerprint_needs_no_llm(tiny_llm):
    prints = {label_fingerprint(llm, LabelConfig(), BUILTIN_TASKS) for llm in (None, tiny_llm)}
    assert len(prints) == 2


def test_label_fingerprint_changes_with_the_llm(tiny_llm, tiny_gpt2_folder):
    other = tiny_llm.model_copy(update={"model": str(tiny_gpt2_folder)})
    prints = {label_fingerprint(llm, LabelConfig(), BUILTIN_TASKS) for llm in (tiny_llm, other)}
    assert len(prints) == 2
