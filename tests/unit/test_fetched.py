"""Sources and models in an object store: fetched once, brought up to date, and refused where nothing is there."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from embedder.config.evaluate import FolderRetriever
from embedder.config.load import load_run
from embedder.config.prepare import Source
from embedder.config.run import EncoderConfig
from embedder.config.tasks import BUILTIN_TASKS
from embedder.data.dataset import read_source
from embedder.errors import ConfigError, DataError
from embedder.models.fingerprint import model_fingerprint
from embedder.models.locate import locate_model
from embedder.models.st_folder import folder_encoder, read_folder
from embedder.storage import fetched
from embedder.storage.json_file import write_json
from embedder.storage.mirror import STATE
from embedder.storage.object_store import upload
from tests.object_store import ObjectStore, send


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that has fetched nothing yet."""
    monkeypatch.setenv("LLM_EMBEDDER_CACHE", str(tmp_path / "cache"))
    fetched._fetched.cache_clear()


def lines(path: Path, rows: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


CORPUS: list[dict[str, object]] = [{"id": f"p{i}", "text": f"passage {i}"} for i in range(4)]
ROW: dict[str, object] = {"query": "a question", "query_id": "q", "pos_ids": ["p1"], "answers": ["an answer"]}


def test_local_copy_of_a_model_is_what_was_sent_and_follows_the_store(
    object_store: ObjectStore, tiny_encoder_folder: Path, tmp_path: Path
) -> None:
    send(tiny_encoder_folder, object_store.path("models/tiny"))
    reference = object_store.open_uri("models/tiny")
    found = locate_model(reference)
    assert isinstance(found, Path) and found.is_relative_to(tmp_path / "cache") and found.name == "tiny"
    assert model_fingerprint(found) == model_fingerprint(tiny_encoder_folder)
    upload(tiny_encoder_folder / "config.json", object_store.path("models/tiny/vocab.json"))
    assert locate_model(reference) == found and not (found / "vocab.json").exists()
    fetched._fetched.cache_clear()
    assert locate_model(reference) == found and (found / "vocab.json").is_file()


def test_local_copy_is_whole_for_actors_that_start_together(
    object_store: ObjectStore, tiny_encoder_folder: Path
) -> None:
    send(tiny_encoder_folder, object_store.path("models/together"))
    remote = object_store.path("models/together")
    with ThreadPoolExecutor(4) as pool:
        folders = list(pool.map(fetched._fetched.__wrapped__, [remote] * 4))
    assert len(set(folders)) == 1
    assert model_fingerprint(folders[0]) == model_fingerprint(tiny_encoder_folder)


@pytest.mark.parametrize("corpus", [False, True])
def test_local_copy_of_a_source_gives_the_rows_of_its_folder(
    object_store: ObjectStore, tmp_path: Path, corpus: bool
) -> None:
    folder, remote = tmp_path / "nq", object_store.path(f"sources/nq-{corpus}")
    fields: dict[str, object] = {"task": "qa", "dataset": "nq"}
    if corpus:
        lines(folder / "rows.jsonl", [{**ROW, "pos_index": [1], "pos": ["passage 1"]}])
        lines(folder / "passages.jsonl", [{"text": one["text"]} for one in CORPUS])
        fields |= {"format": "reference"}
        here = {"path": folder / "rows.jsonl", "corpus": folder / "passages.jsonl"}
        there = {"path": remote / "rows.jsonl", "corpus": remote / "passages.jsonl"}
    else:
        lines(folder / "train.jsonl", [ROW])
        lines(folder / "corpus.jsonl", CORPUS)
        here, there = {"path": folder}, {"path": remote}
    send(folder, remote)
    stored = read_source(Source.model_validate(fields | there), BUILTIN_TASKS["qa"], 0)
    known = read_source(Source.model_validate(fields | here), BUILTIN_TASKS["qa"], 0)
    assert stored == known and len(stored.passages) == 4 and len(stored.queries["train"]) == 1


def test_local_copy_of_a_file_leaves_out_its_neighbours(object_store: ObjectStore, tmp_path: Path) -> None:
    lines(tmp_path / "sent" / "rows.jsonl", [ROW])
    lines(tmp_path / "sent" / "huge.jsonl", CORPUS)
    send(tmp_path / "sent", object_store.path("sources/alone"))
    found = fetched.local_copy(object_store.path("sources/alone/rows.jsonl"))
    assert found.read_bytes() == (tmp_path / "sent" / "rows.jsonl").read_bytes()
    assert [path.name for path in found.parent.iterdir() if not path.name.startswith(".")] == ["rows.jsonl"]


def test_local_copy_of_nothing_is_refused_and_a_folder_is_taken_where_it_is(
    object_store: ObjectStore, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="s3://bucket/models/none: nothing is there; correct the path"):
        locate_model(object_store.open_uri("models/none"))
    assert fetched.local_copy(tmp_path) == tmp_path


@pytest.mark.parametrize("what", ["sending", "replacing"])
def test_local_copy_of_a_model_that_is_not_all_there_yet_is_refused_and_its_neighbour_is_not(
    object_store: ObjectStore, tiny_encoder_folder: Path, what: str
) -> None:
    run = object_store.path(f"runs/{what}")
    for name in ("model", "model-before"):
        send(tiny_encoder_folder, run / name)
    write_json({"writer": "other", what: ["model/config.json", "x"]}, run / STATE)
    with pytest.raises(DataError, match=r"model: a job is sending model/config\.json and 0 others"):
        locate_model(object_store.open_uri(f"runs/{what}/model"))
    assert isinstance(locate_model(object_store.open_uri(f"runs/{what}/model-before")), Path)
    write_json({"writer": "other"}, run / STATE)
    assert isinstance(locate_model(object_store.open_uri(f"runs/{what}/model")), Path)


def test_retriever_in_a_store_is_named_by_its_path_for_every_machine(
    object_store: ObjectStore, tiny_encoder: EncoderConfig, tiny_encoder_folder: Path, tmp_path: Path
) -> None:
    for name, module in (("flat", ""), ("deep", "0_Transformer")):
        folder = tmp_path / name
        shutil.copytree(tiny_encoder_folder, folder / module)
        modules = [{"type": "x.Transformer", "path": module}, {"type": "x.Pooling", "path": "1_Pooling"}]
        (folder / "modules.json").write_text(json.dumps(modules))
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": "cls"}))
        send(folder, object_store.path(f"retrievers/{name}"))
        reference = object_store.open_uri(f"retrievers/{name}")
        assert read_folder(reference).pooling == read_folder(str(folder)).pooling == "cls"
        encoder, _ = folder_encoder(FolderRetriever(name="x", model=reference), tiny_encoder, BUILTIN_TASKS)
        found = locate_model(encoder.model)
        assert encoder.model == reference and (found / "config.json").is_file()
        assert found.name == (module or name) and locate_model(str(folder)) == folder / module


def test_reference_with_an_at_sign_in_a_name_holds_no_credential(tmp_path: Path) -> None:
    run = {"paths": {"work": "w"}, "encoder": {"model": "s3://bucket/models/name@v2", "pooling": "cls"}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
    assert load_run(tmp_path / "run.yaml").encoder.model == "s3://bucket/models/name@v2"


@pytest.mark.parametrize(
    ("reference", "reason"),
    [
        ("s3://AKIATEST:secret@bucket/model", r"may hold no credentials.*s3://\*\*\*@bucket"),
        ("http://host/model", "http:// is not supported"),
        ("s3://bucket//model", "a name between two slashes is empty"),
    ],
)
def test_reference_that_cannot_be_used_is_refused_as_the_run_file_is_read(
    tmp_path: Path, reference: str, reason: str
) -> None:
    run = {"paths": {"work": "w"}, "encoder": {"model": reference, "pooling": "cls"}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
    with pytest.raises(ConfigError, match=reason) as caught:
        load_run(tmp_path / "run.yaml")
    assert "secret" not in str(caught.value)
