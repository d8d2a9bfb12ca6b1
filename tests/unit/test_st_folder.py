"""Encoders of sentence-transformers folders: the library's own vectors, prompts from the files, and what is refused."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from embedder.config.evaluate import FolderRetriever
from embedder.config.run import EncoderConfig
from embedder.config.tasks import BUILTIN_TASKS
from embedder.errors import ConfigError, ModelError
from embedder.models.encoder import encode, load_encoder
from embedder.models.encoder_export import export_encoder
from embedder.models.locate import locate_model
from embedder.models.st_folder import FolderFacts, check_base_model, folder_encoder, read_folder

TEXTS = ["the fox jumps", "a list holds items in order " * 20, ""]


@pytest.fixture
def exported(tiny_encoder, tmp_path):
    export_encoder(load_encoder(tiny_encoder, device="cpu"), tmp_path / "model", BUILTIN_TASKS)
    return tmp_path / "model"


@pytest.fixture
def saved(exported, tmp_path):
    """As the library writes a folder today."""
    SentenceTransformer(str(exported), device="cpu").save(str(tmp_path / "saved"))
    return tmp_path / "saved"


@pytest.mark.parametrize("which", ["exported", "saved"])
def test_folder_encoder_gives_the_vectors_of_the_library(request, which, tiny_encoder):
    folder = request.getfixturevalue(which)
    config, tasks = folder_encoder(FolderRetriever(name="x", model=str(folder)), tiny_encoder, BUILTIN_TASKS)
    expected = SentenceTransformer(str(folder), device="cpu").encode(TEXTS, prompt_name="qa_query")
    found = encode(load_encoder(config, device="cpu"), TEXTS, tasks["qa"], "query")
    assert np.allclose(found, expected, atol=1e-5)


def test_folder_encoder_keeps_the_instructions_of_a_trained_encoder(exported, tiny_encoder):
    _, tasks = folder_encoder(FolderRetriever(name="x", model=str(exported)), tiny_encoder, BUILTIN_TASKS)
    for name, spec in BUILTIN_TASKS.items():
        assert [tasks[name].instruction(side) for side in ("query", "passage")] == [
            spec.query_instruction,
            spec.passage_instruction,
        ]


def change(folder, name, **fields):
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize("key", ["document", "passage", "corpus"])
def test_folder_encoder_takes_the_prompts_of_other_folders_by_side(exported, tiny_encoder, key):
    change(exported, "config_sentence_transformers.json", prompts={"query": "Q: ", key: "K: "})
    _, tasks = folder_encoder(FolderRetriever(name="x", model=str(exported)), tiny_encoder, BUILTIN_TASKS)
    assert (tasks["icl"].query_instruction, tasks["icl"].passage_instruction) == ("Q: ", "K: ")
    given = FolderRetriever(name="x", model=str(exported), query_prompt="", passage_prompt="mine: ")
    _, tasks = folder_encoder(given, tiny_encoder, BUILTIN_TASKS)
    assert (tasks["icl"].query_instruction, tasks["icl"].passage_instruction) == ("", "mine: ")


def test_folder_facts_have_a_default_prompt_for_both_sides():
    facts = FolderFacts(prompts={"all": "A: "}, default_prompt="A: ")
    assert (facts.prompt("qa", "query"), facts.prompt("qa", "passage")) == ("A: ", "A: ")
    assert FolderFacts().prompt("qa", "passage") == ""


@pytest.mark.parametrize(("folder_tokens", "own", "expected"), [(256, None, 64), (32, None, 32), (256, 128, 128)])
def test_folder_encoder_cuts_texts_like_those_of_the_run_but_never_beyond_the_folder(
    exported, tiny_encoder, folder_tokens, own, expected
):
    change(exported, "sentence_bert_config.json", max_seq_length=folder_tokens)
    retriever = FolderRetriever(name="x", model=str(exported), max_tokens=own)
    assert folder_encoder(retriever, tiny_encoder, BUILTIN_TASKS)[0].max_tokens == expected


def test_read_folder_knows_older_folders_with_one_flag_a_pooling(exported):
    flags = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False, "pooling_mode_max_tokens": False}
    (exported / "1_Pooling/config.json").write_text(json.dumps({"word_embedding_dimension": 32, **flags}))
    assert read_folder(str(exported)).pooling == "cls"


REFUSED = {
    "two poolings": ("1_Pooling/config.json", {"pooling_mode": ["cls", "mean"]}, "pooling is"),
    "another pooling": ("1_Pooling/config.json", {"pooling_mode": "max"}, "pooling is"),
    "prompt left out": ("1_Pooling/config.json", {"include_prompt": False}, "leaves the prompt out"),
    "lower case": ("sentence_bert_config.json", {"do_lower_case": True}, "do_lower_case"),
}


@pytest.mark.parametrize(("name", "fields", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_read_folder_refuses_what_pooling_alone_cannot_give(exported, name, fields, reason):
    change(exported, name, **fields)
    with pytest.raises(ModelError, match=reason):
        read_folder(str(exported))


def test_read_folder_refuses_further_layers(exported):
    modules = json.loads((exported / "modules.json").read_text())
    modules.append({"idx": 3, "name": "3", "path": "3_Dense", "type": "sentence_transformers.models.Dense"})
    (exported / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ModelError, match="Dense"):
        read_folder(str(exported))


def test_read_folder_refuses_vectors_not_normalised_for_the_inner_product(exported):
    modules = json.loads((exported / "modules.json").read_text())[:2]
    (exported / "modules.json").write_text(json.dumps(modules))
    assert read_folder(str(exported)).pooling == "mean"
    change(exported, "config_sentence_transformers.json", similarity_fn_name="dot")
    with pytest.raises(ModelError, match="cosine"):
        read_folder(str(exported))


def test_read_folder_names_a_broken_file(exported):
    (exported / "modules.json").write_text("{")
    with pytest.raises(ModelError, match=r"modules\.json: not JSON"):
        read_folder(str(exported))


def test_folder_encoder_of_a_plain_folder_must_be_told_its_pooling(tiny_encoder_folder, tiny_encoder):
    with pytest.raises(ModelError, match="does not say how it pools"):
        folder_encoder(FolderRetriever(name="x", model=str(tiny_encoder_folder)), tiny_encoder, BUILTIN_TASKS)
    told = FolderRetriever(name="x", model=str(tiny_encoder_folder), pooling="cls")
    config, tasks = folder_encoder(told, tiny_encoder, BUILTIN_TASKS)
    assert config == EncoderConfig(model=str(tiny_encoder_folder), pooling="cls", max_tokens=64, batch_tokens=256)
    assert tasks["qa"].query_instruction == ""


def test_read_folder_with_a_transformer_in_a_folder_of_its_own(exported, tmp_path):
    inner = exported / "0_Transformer"
    inner.mkdir()
    for path in [one for one in exported.iterdir() if one.is_file() and one.name != "modules.json"]:
        if path.name != "config_sentence_transformers.json":
            shutil.move(path, inner / path.name)
    modules = json.loads((exported / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (exported / "modules.json").write_text(json.dumps(modules))
    assert read_folder(str(exported)).max_tokens == 64
    assert locate_model(str(exported)) == inner


def test_read_folder_of_a_missing_folder_and_of_a_hub_name():
    for name in ("/nowhere/at/all", "owner/name"):
        with pytest.raises(ModelError, match="no such folder"):
            read_folder(name)


POOLED = [
    ({"pooling_mode": "cls"}, "was made with 'cls'"),
    ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "was made with 'cls'"),
    ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, "pooling_mode_cls_token.*pooling_mode_mean"),
    ({"pooling_mode": "mean"}, ""),
    ({"pooling_mode_mean_tokens": True, "pooling_mode_lasttoken": False}, ""),
]


@pytest.mark.parametrize(("pooling", "said"), POOLED)
def test_base_model_must_pool_as_the_run_file_says(tmp_path, tiny_encoder, tiny_encoder_folder, pooling, said):
    folder = tmp_path / "st"
    shutil.copytree(tiny_encoder_folder, folder)
    check_base_model(tiny_encoder.model_copy(update={"model": str(folder)}))
    modules = [{"path": "", "type": "x.Transformer"}, {"path": "1_Pooling", "type": "x.Pooling"}]
    (folder / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling), encoding="utf-8")
    started = tiny_encoder.model_copy(update={"model": str(folder)})
    if said:
        with pytest.raises((ConfigError, ModelError), match=said):
            check_base_model(started)
    else:
        check_base_model(started)
    (folder / "modules.json").write_text(json.dumps([*modules, {"path": "2", "type": "x.Dense"}]), encoding="utf-8")
    with pytest.raises(ModelError, match=r"modules \['Dense'"):
        check_base_model(started)
