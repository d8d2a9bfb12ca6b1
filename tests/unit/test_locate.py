"""Model folders: found, checked before they are loaded, identified by content."""

from __future__ import annotations

import hashlib
import json
import shutil

import pytest

from embedder.errors import ModelError
from embedder.hashing import file_sha256
from embedder.models.encoder import load_encoder
from embedder.models.fingerprint import model_fingerprint
from embedder.models.locate import _hub_folder, check_model_folder, count_parameters, gguf_file, locate_model


@pytest.fixture
def folder(tiny_encoder_folder, tmp_path):
    """A copy that a test may spoil."""
    return shutil.copytree(tiny_encoder_folder, tmp_path / "model")


def test_locate_model_finds_a_folder_by_its_path(folder, monkeypatch):
    assert locate_model(str(folder)) == folder
    monkeypatch.chdir(folder.parent)
    assert locate_model("model") == locate_model("./model") == folder


def test_locate_model_refuses_a_hub_name_without_a_hub_in_one_line(tmp_path, monkeypatch):
    """Case 23-hub-offline: an encoder and an LLM that are not in the cache."""
    monkeypatch.chdir(tmp_path)
    for name in ("BAAI/bge-small-en-v1.5", "HuggingFaceTB/SmolLM2-135M", "not a/name?"):
        with pytest.raises(ModelError, match="hub") as caught:
            locate_model(name)
        assert "\n" not in str(caught.value)


@pytest.fixture
def snapshot(folder, tmp_path, monkeypatch):
    """The cached snapshot of the hub model `owner/name`, as huggingface_hub lays it out."""
    cached = tmp_path / "hub" / "models--owner--name"
    commit = "0123456789abcdef0123456789abcdef01234567"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text(commit)
    (cached / "snapshots").mkdir()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("embedder.models.locate._hub_folder", _hub_folder.__wrapped__)
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(folder, cached / "snapshots" / commit)


def test_locate_model_takes_a_hub_model_from_the_cache_and_it_is_known_by_content(snapshot, folder):
    assert locate_model("owner/name").resolve() == snapshot.resolve()
    assert model_fingerprint(locate_model("owner/name")) == model_fingerprint(folder)
    assert count_parameters(locate_model("owner/name")) > 0
    config = snapshot / "config.json"
    config.write_text(config.read_text().replace("1e-12", "1e-05"))
    assert model_fingerprint(locate_model("owner/name")) != model_fingerprint(folder)


@pytest.mark.parametrize("reference", ["gone", "./owner/name", "/no/such", "a/b/c", "~/no-such-folder-here"])
def test_locate_model_refuses_any_other_missing_folder(tmp_path, monkeypatch, reference):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="no such folder"):
        locate_model(reference)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.safetensors", r"no \*\.safetensors file"),
        ("config.json", r"no config\.json"),
        ("tokenizer_config.json", r"no tokenizer_config\.json"),
    ],
)
def test_locate_model_refuses_a_folder_without_a_needed_file(folder, name, message):
    (folder / name).unlink()
    with pytest.raises(ModelError, match=message):
        locate_model(str(folder))


def test_locate_model_takes_no_pickled_weights(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="safetensors"):
        check_model_folder(folder)


def test_locate_model_refuses_a_package_that_is_not_installed():
    with pytest.raises(ModelError, match="no installed Python package 'no_such_package_here'"):
        locate_model("package:no_such_package_here/model")


@pytest.mark.parametrize("name", ["", "a.b", "..", "os;x"])
def test_locate_model_refuses_a_package_name_that_is_none(name):
    with pytest.raises(ModelError, match="no installed Python package"):
        locate_model(f"package:{name}/model")


@pytest.mark.parametrize("inside", ["..", "../json", "mime/../../..", "/etc"])
def test_locate_model_refuses_a_reference_that_leads_out_of_its_package(inside):
    with pytest.raises(ModelError, match="leads out of the package"):
        locate_model(f"package:email/{inside}")


def test_locate_model_refuses_a_folder_of_a_package_without_model():
    with pytest.raises(ModelError, match="safetensors"):
        locate_model("package:email/mime")


def test_locate_model_finds_a_model_inside_a_package(folder, tmp_path, monkeypatch):
    package = tmp_path / "site" / "pocket_model"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('a package is located, never imported')\n")
    shutil.copytree(folder, package / "weights")
    monkeypatch.syspath_prepend(package.parent)
    assert locate_model("package:pocket_model/weights") == package / "weights"


def test_locate_model_takes_one_gguf_file_without_safetensors(tmp_path):
    (tmp_path / "a.gguf").write_bytes(b"GGUF" + b"x" * 5)
    assert gguf_file(tmp_path) == tmp_path / "a.gguf"
    check_model_folder(tmp_path)
    (tmp_path / "b.gguf").write_bytes(b"x")
    assert gguf_file(tmp_path) is None
    with pytest.raises(ModelError, match="safetensors"):
        check_model_folder(tmp_path)


def test_count_parameters_loads_no_model(tiny_encoder, tiny_encoder_folder, tmp_path):
    encoder = load_encoder(tiny_encoder, device="cpu")
    assert count_parameters(tiny_encoder_folder) == sum(weight.numel() for weight in encoder.parameters())
    (tmp_path / "a.gguf").write_bytes(b"GGUF" + b"x" * 5)
    assert count_parameters(tmp_path) == 16


def test_model_fingerprint_depends_on_content_alone(folder, tiny_encoder_folder):
    original = model_fingerprint(tiny_encoder_folder, {"pooling": "mean"})
    assert model_fingerprint(folder, {"pooling": "mean"}) == original
    (folder / "README.md").write_text("more words")
    assert model_fingerprint(folder, {"pooling": "mean"}) == original


def test_model_fingerprint_changes_with_the_settings(folder):
    settings = [{"pooling": "mean"}, {"pooling": "cls"}, {"pooling": "mean", "max_tokens": 9}, {}]
    assert len({model_fingerprint(folder, fields) for fields in settings}) == 4


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_model_fingerprint_changes_with_one_byte_of_the_model(folder, name):
    before = model_fingerprint(folder)
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    assert model_fingerprint(folder) != before


def test_model_fingerprint_changes_with_the_settings_of_the_tokenizer(folder):
    before = model_fingerprint(folder)
    path = folder / "tokenizer_config.json"
    settings = {**json.loads(path.read_text()), "truncation_side": "left"}
    path.write_text(json.dumps(settings))
    assert model_fingerprint(folder) != before


def test_file_sha256_is_that_of_the_file(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    assert file_sha256(tmp_path / "x") == hashlib.sha256(b"abc").hexdigest()
