"""What changes a result changes its fingerprint, and nothing else does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer

from embedder.config.label import LabelConfig
from embedder.config.run import LlmConfig, RunConfig
from embedder.config.tasks import BUILTIN_TASKS, WorkedAnswer
from embedder.models.fingerprint import encoder_fingerprint, label_fingerprint, model_fingerprint
from ray_jobs.retrieval.vectors import VectorStore, open_store
from tests.unit.tiny_folders import CHATML, chat_llm_folder

QA = BUILTIN_TASKS["qa"]
WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(tiny_encoder_folder, tmp_path):
    """A copy that a test may change."""
    return shutil.copytree(tiny_encoder_folder, tmp_path / "model")


COUNTED = [
    *("chat_template.jinja", "chat_templates/other.jinja", "generation_config.json", "added_tokens.json"),
    *("sentencepiece.bpe.model", "spm.model", "spiece.model", "vocab.txt", "merges.txt", "special_tokens_map.json"),
    *("1_Pooling/config.json", "modules.json", "config_sentence_transformers.json", "2_Dense/model.safetensors"),
    *("a-name-that-nobody-knows-yet", "preprocessor_config.json", "tokenizer.model.v3", "tekken.json"),
]
INERT = [
    *("README.md", "LICENSE", "LICENSE.txt", "NOTICE", ".gitattributes", ".cache/huggingface/x", "figure.png"),
    *("pytorch_model.bin", "training_args.bin", "optimizer.pt", "tf_model.h5", "flax_model.msgpack", "rust_model.ot"),
    *("onnx/model.onnx", "openvino/openvino_model.xml", "runs/events", "modeling_own.py", "lineage.json"),
    *("trainer_state.json", "model.safetensors.index.json", "consolidated.safetensors", "weights.gguf"),
]


@pytest.mark.parametrize("name", COUNTED)
def test_model_fingerprint_is_of_every_file_that_is_not_known_to_be_inert(folder, name):
    prints = [model_fingerprint(folder)]
    (folder / name).parent.mkdir(exist_ok=True)
    for content in ("{}", '{"eos_token_id": 7}'):
        (folder / name).write_text(content, encoding="utf-8")
        prints.append(model_fingerprint(folder))
    (folder / name).rename((folder / name).with_name(f"other-{Path(name).name}"))
    prints.append(model_fingerprint(folder))
    assert len(set(prints)) == 4


@pytest.mark.parametrize("name", INERT)
def test_model_fingerprint_is_not_of_files_that_change_no_result(folder, name):
    before = model_fingerprint(folder)
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("{}", encoding="utf-8")
    assert model_fingerprint(folder) == before


def test_model_fingerprint_is_of_the_tensors_and_not_of_how_they_are_stored(folder, tmp_path):
    """The same weights in shards, in another order, with other metadata, saved again, or elsewhere."""
    before, weights = model_fingerprint(folder), load_file(folder / WEIGHTS)
    moved = shutil.copytree(folder, tmp_path / "elsewhere")
    assert model_fingerprint(moved) == before
    save_file(dict(reversed(weights.items())), moved / WEIGHTS, {"format": "pt", "by": "another program"})
    assert model_fingerprint(moved) == before
    (moved / WEIGHTS).unlink()
    names = sorted(weights)
    files = {name: f"model-0000{i % 2 + 1}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(files.values()):
        save_file({name: weights[name] for name in names if files[name] == file}, moved / file)
    (moved / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}), encoding="utf-8")
    assert model_fingerprint(moved) == before


def test_model_fingerprint_of_a_model_that_is_loaded_and_saved_again(folder, tmp_path):
    for source, target in ((folder, tmp_path / "once"), (tmp_path / "once", tmp_path / "twice")):
        AutoModel.from_pretrained(source).save_pretrained(target)
        AutoTokenizer.from_pretrained(source).save_pretrained(target)
    assert model_fingerprint(tmp_path / "twice") == model_fingerprint(tmp_path / "once")


def with_tensors(folder, **changed):
    save_file({**load_file(folder / WEIGHTS), **changed}, folder / WEIGHTS)
    return model_fingerprint(folder)


def test_model_fingerprint_is_another_for_other_names_types_and_shapes_of_weights(folder):
    weights = load_file(folder / WEIGHTS)
    name = "embeddings.LayerNorm.weight"
    bias = "embeddings.LayerNorm.bias"
    prints = [
        model_fingerprint(folder),
        with_tensors(folder, **{name: weights[name].half()}),
        with_tensors(folder, **{name: weights[name].view(2, -1)}),
        with_tensors(folder, **{name: weights[bias], bias: weights[name]}),
        with_tensors(folder, **{name: weights[name] + 1e-7}),
    ]
    assert len(set(prints)) == 5


def test_model_fingerprint_keeps_names_and_contents_apart(folder):
    """Two files whose names and contents give the same text when they are joined are two models."""
    (folder / "ab").write_text("c", encoding="utf-8")
    one = model_fingerprint(folder)
    (folder / "ab").unlink()
    (folder / "a").write_text("bc", encoding="utf-8")
    assert model_fingerprint(folder) != one
    assert model_fingerprint(folder, {"a": "bc"}) != model_fingerprint(folder, {"ab": "c"})


def test_label_fingerprint_changes_with_the_chat_template(tmp_path):
    """Case 15-chat-template-not-hashed."""
    folder = chat_llm_folder(tmp_path / "llm")
    tasks = {"qa": QA.model_copy(update={"template": QA.template.model_copy(update={"chat": True})})}
    llm = LlmConfig(model=str(folder))
    before = label_fingerprint(llm, LabelConfig(), tasks)
    other = CHATML.replace("assistant", "assistant (be brief)")
    (folder / "chat_template.jinja").write_text(other, encoding="utf-8")
    assert label_fingerprint(llm, LabelConfig(), tasks) != before


def test_label_fingerprint_is_not_of_the_order_of_a_run_file(tmp_path, tiny_llm):
    def of(names, arguments):
        chat = {"template": {"context": "{passage}", "input": "{query}", "chat": True, "chat_arguments": arguments}}
        told = {"query_instruction": "", "passage_instruction": "", **chat}
        tasks = dict.fromkeys(names, told)
        config = RunConfig.model_validate(
            {"paths": {"work": tmp_path}, "encoder": {"model": "m", "pooling": "cls"}, "tasks": tasks}
        )
        return label_fingerprint(None, LabelConfig(), config.tasks)

    assert of(["laws", "bills"], {"a": 1, "b": 2}) == of(["bills", "laws"], {"b": 2, "a": 1})


def test_label_fingerprint_changes_with_the_way_prompts_are_made(monkeypatch):
    before = label_fingerprint(None, LabelConfig(), {"qa": QA})
    monkeypatch.setattr("embedder.models.fingerprint.PROMPT_FORMAT", 3)
    assert label_fingerprint(None, LabelConfig(), {"qa": QA}) != before


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


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_vectors_of_one_encoder_in_two_number_formats_lie_apart_under_one_fingerprint(tmp_path, tiny_encoder, dtype):
    config, other = (
        RunConfig(paths={"work": tmp_path}, encoder=tiny_encoder),
        tiny_encoder.model_copy(update={"dtype": dtype}),
    )
    assert encoder_fingerprint(other) == encoder_fingerprint(tiny_encoder)
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
        ("corpus_outputs", 2, True),
        ("sample_length", "desired", True),
        ("recompute", True, False),
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
        ("reward", "own_answers", True),
        ("reward", "judgement", True),
        ("worked_examples", [WorkedAnswer(query="q", answer="a")], False),  # counts with the pool that it is in
        ("reward_margin", 0.5, False),
        ("reward_sum", "sum", False),
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


def test_label_fingerprint_of_earlier_versions_is_that_of_the_defaults():
    """Computed by the version before corpus outputs and the length of samples could be set."""
    assert label_fingerprint(None, LabelConfig(), {"qa": QA}) == "9a5717aba7439d79"


def test_label_fingerprint_needs_no_llm(tiny_llm):
    prints = {label_fingerprint(llm, LabelConfig(), BUILTIN_TASKS) for llm in (None, tiny_llm)}
    assert len(prints) == 2


def test_label_fingerprint_changes_with_the_llm(tiny_llm, tiny_gpt2_folder):
    other = tiny_llm.model_copy(update={"model": str(tiny_gpt2_folder)})
    prints = {label_fingerprint(llm, LabelConfig(), BUILTIN_TASKS) for llm in (tiny_llm, other)}
    assert len(prints) == 2
