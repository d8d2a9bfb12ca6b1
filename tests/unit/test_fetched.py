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
from embedder.errors import ConfigError, DataError, UnfinishedError
from embedder.models.fingerprint import model_fingerprint
from embedder.models.locate import locate_model
from embedder.models.st_folder import folder_encoder, read_folder
from embedder.storage import fetched
from embedder.storage.folders import FILES, file_names, folder_made, is_whole, put_json, remove_folder
from embedder.storage.object_store import upload
from tests.object_store import ObjectStore, send


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that has fetched nothing yet."""
    monkeypatch.setenv("LLM_EMBEDDER_CACHE", str(tmp_path / "cache"))
    fetched._followed.cache_clear()


def lines(path: Path, rows: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write(folder: Path, **files: str) -> None:
    """Files by name, with `_` for the dot and `__` for the slash."""
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


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
    fetched._followed.cache_clear()
    assert locate_model(reference) == found and (found / "vocab.json").is_file()


def test_local_copy_is_whole_for_actors_that_start_together(
    object_store: ObjectStore, tiny_encoder_folder: Path
) -> None:
    send(tiny_encoder_folder, object_store.path("models/together"))
    remote = object_store.path("models/together")
    with ThreadPoolExecutor(4) as pool:
        folders = list(pool.map(fetched._followed.__wrapped__, [remote] * 4, [True] * 4))
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


def test_folder_that_a_job_sends_is_fetched_whole_or_refused(
    object_store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = object_store.path("runs/sent")
    for text in ("before", "after"):
        with folder_made(run / "model") as folder:
            write(folder, a_txt=text, deep__b_txt=text)
        found = fetched.local_copy(run / "model")
        assert found.name == "model"
        assert {path.read_text() for path in (found / "a.txt", found / "deep/b.txt")} == {text}
    assert not (found / FILES).exists()
    (run / "model" / "deep/b.txt").unlink()
    with pytest.raises(UnfinishedError, match="model: not whole; a job is sending it, or was cut off as it did: wait"):
        fetched.local_copy(run / "model")
    assert not is_whole(run / "model")
    write(tmp_path, other_txt="of another one")
    upload(tmp_path / "other.txt", run / "model" / "deep/b.txt")
    # This machine has what the folder should have, and another one has not.
    assert fetched.local_copy(run / "model") == found
    monkeypatch.setenv("LLM_EMBEDDER_CACHE", str(tmp_path / "elsewhere"))
    with pytest.raises(UnfinishedError, match=r"deep/b\.txt: not whole"):
        fetched.local_copy(run / "model")


def test_folder_that_is_made_anew_loses_the_files_that_it_had(object_store: ObjectStore) -> None:
    place = object_store.path("runs/anew/model")
    for name in ("a_txt", "b_txt"):
        with folder_made(place) as folder:
            write(folder, **{name: "1"})
    assert file_names(place) == ["b.txt"] and (place / FILES).is_file()
    put_json({"x": 1}, place, "lineage.json")
    assert sorted(path.name for path in fetched.whole_copy(place).iterdir()) == ["b.txt", "lineage.json"]
    remove_folder(place)
    assert not place.is_dir() and file_names(place) == []


def test_folder_that_cannot_be_filled_is_not_sent(object_store: ObjectStore) -> None:
    place = object_store.path("runs/failed/model")
    with pytest.raises(OSError, match="full"), folder_made(place) as folder:
        write(folder, a_txt="1")
        raise OSError("full")
    assert not place.is_dir()


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
