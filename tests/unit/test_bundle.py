"""The bundle: what was published is what is served, or it is refused."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from embedder.config.tasks import BUILTIN_TASKS
from embedder.errors import BundleError, ProbeError
from embedder.index.bundle import (
    MODEL,
    Manifest,
    bundle_encoder,
    instructions,
    read_manifest,
    shard_folder,
    shard_of,
    verify,
)
from embedder.index.collection import CollectionIdentity
from embedder.index.documents import Document
from embedder.index.manifest import hash_files
from embedder.index.opened import OpenIndex
from embedder.index.probe import PROBE, Probe, check_probe, check_ranks, write_probe
from embedder.index.search_options import SearchOptions
from embedder.index.state_places import StatePlaces
from embedder.models.encoder import encode, encode_prompted, load_encoder
from embedder.models.fingerprint import model_fingerprint
from tests.unit.index_cases import write

MANIFEST = Manifest.FILE

TASKS = {name: BUILTIN_TASKS[name] for name in ("qa", "tool")}
PASSAGES = {
    name: [f"{name} passage about the {word}" for word in ["fox", "dog", "list", "city", "set", "bridge"]]
    for name in TASKS
}
FILES = [
    "model/config.json",
    "model/model.safetensors",
    "model/tokenizer.json",
    "model/tokenizer_config.json",
    *(
        f"shards/0000{shard}/{task}/{name}"
        for shard in (0, 1)
        for task in ("qa", "tool")
        for name in ("collection.json", "metadata.arrow", "payload.arrow", "vectors.faiss")
    ),
]


@pytest.fixture(scope="module")
def encoder(tiny_encoder):
    return load_encoder(tiny_encoder, device="cpu")


@pytest.fixture(scope="module")
def published(encoder, tiny_encoder, tiny_encoder_folder, tmp_path_factory):
    """A bundle of two tasks in two shards."""
    folder = tmp_path_factory.mktemp("run") / "bundle"
    shutil.copytree(tiny_encoder_folder, folder / MODEL)
    settings = {"pooling": tiny_encoder.pooling, "max_tokens": tiny_encoder.max_tokens}
    fingerprint = model_fingerprint(folder / MODEL, settings)
    for shard in (0, 1):
        for name, task in TASKS.items():
            texts = [text for text in PASSAGES[name] if shard_of(text[-6:], 2) == shard]
            documents = [Document(id=text[-6:], text=text, dataset="d") for text in texts]
            place = CollectionIdentity(
                task=name, shard=shard, num_shards=2, encoder_fingerprint=fingerprint, dimension=encoder.dimension
            )
            write(
                shard_folder(folder, shard) / name,
                documents,
                encode(encoder, texts, task, "passage"),
                place,
                lexical=False,
            )
    manifest = Manifest(
        name="run",
        encoder_fingerprint=fingerprint,
        dimension=encoder.dimension,
        tasks=instructions(TASKS),
        collections=dict.fromkeys(TASKS, 6),
        num_shards=2,
        files=hash_files(folder),
        **settings,
    )
    manifest.write(folder)
    return folder


@pytest.fixture
def bundle(published, tmp_path):
    """A copy that a test may spoil."""
    return shutil.copytree(published, tmp_path / "bundle")


def test_bundle_that_is_untouched_is_verified(bundle):
    manifest = verify(bundle)
    assert manifest == read_manifest(bundle)
    assert sorted(manifest.files) == sorted(FILES)


def test_bundle_model_encodes_as_the_one_it_was_made_with(bundle, encoder):
    loaded = load_encoder(bundle_encoder(bundle, verify(bundle)), device="cpu")
    texts = ["the fox", "a list of cities"]
    assert (encode(loaded, texts, TASKS["qa"], "query") == encode(encoder, texts, TASKS["qa"], "query")).all()


def test_bundle_passages_are_found_over_all_shards(bundle, encoder):
    index = OpenIndex.open(bundle, StatePlaces.beside(bundle))
    for name, task in TASKS.items():
        assert index.stats()[name].documents == index.manifest.collections[name]
        vectors = encode(encoder, PASSAGES[name], task, "passage")
        found = index.search(name, SearchOptions(k=3), vectors).hits()
        for hits, text in zip(found, PASSAGES[name], strict=True):
            assert (hits[0].text, len(hits)) == (text, 3)
            assert hits[0].score == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("name", FILES)
def test_bundle_with_one_flipped_bit_is_refused_with_its_file(bundle, name):
    data = bytearray((bundle / name).read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / name).write_bytes(data)
    with pytest.raises(BundleError, match=f"{name}: SHA-256 differs"):
        verify(bundle)


@pytest.mark.parametrize("name", FILES)
def test_bundle_with_a_missing_file_is_refused_with_its_name(bundle, name):
    (bundle / name).unlink()
    with pytest.raises(BundleError, match=f"{name}: missing"):
        verify(bundle)


@pytest.mark.parametrize("name", ["extra.pkl", "model/pytorch_model.bin", "shards/00000/chat/vectors.faiss"])
def test_bundle_with_a_file_that_is_not_listed_is_refused(bundle, name):
    (bundle / name).parent.mkdir(exist_ok=True)
    (bundle / name).write_bytes(b"x")
    with pytest.raises(BundleError, match=f"{name}: not in the manifest"):
        verify(bundle)


def test_bundle_check_of_a_replica_is_of_its_own_part_alone(bundle):
    (bundle / "shards/00001/qa/vectors.faiss").write_bytes(b"x")
    assert verify(bundle, "shards/00000/") == read_manifest(bundle)
    with pytest.raises(BundleError, match="SHA-256 differs"):
        verify(bundle, "shards/00001/")


def hashes(bundle):
    return {name: digest for name, digest in hash_files(bundle).items() if name != MANIFEST}


def rewrite(bundle, *, seal=True, **fields):
    """Change fields of the manifest; sealed, its digest fits the change."""
    manifest = {**json.loads((bundle / MANIFEST).read_text()), **fields}
    if seal:
        manifest["digest"] = Manifest.model_validate(manifest).computed_digest()
    (bundle / MANIFEST).write_text(json.dumps(manifest))


def test_bundle_with_a_swapped_model_is_refused_even_if_the_manifest_lists_its_files(bundle):
    config = bundle / MODEL / "config.json"
    config.write_text(config.read_text().replace('"layer_norm_eps": 1e-12', '"layer_norm_eps": 1e-05'))
    rewrite(bundle, files=hashes(bundle))
    with pytest.raises(BundleError, match="the vectors were made with model"):
        verify(bundle)


@pytest.mark.parametrize("fields", [{"pooling": "cls"}, {"max_tokens": 16}, {"encoder_fingerprint": "0" * 16}])
def test_manifest_with_settings_that_the_vectors_were_not_made_with_is_refused(bundle, fields):
    rewrite(bundle, **fields)
    with pytest.raises(BundleError, match="the vectors were made with model"):
        verify(bundle)


@pytest.mark.parametrize("fields", [{"colour": "red"}, {"files": None}, {"metric": "l2"}])
def test_manifest_of_another_form_is_refused_in_one_line(bundle, fields):
    rewrite(bundle, seal=False, **fields)
    with pytest.raises(BundleError, match="no manifest of format 6") as caught:
        verify(bundle)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]"])
def test_manifest_that_is_no_json_object_is_refused(bundle, content):
    (bundle / MANIFEST).write_bytes(content)
    with pytest.raises(BundleError, match="manifest"):
        verify(bundle)


def test_bundle_without_manifest_is_refused(bundle):
    (bundle / MANIFEST).unlink()
    with pytest.raises(BundleError, match="no bundle"):
        verify(bundle)


@pytest.mark.parametrize("version", [5, 7])
def test_bundle_of_another_version_says_so(bundle, version):
    rewrite(bundle, seal=False, format=version)
    with pytest.raises(BundleError, match=f"format {version}, but this version reads format 6"):
        verify(bundle)


def test_index_version_changes_with_any_file(bundle):
    manifest = read_manifest(bundle)
    versions = {manifest.index_version}
    versions |= {manifest.model_copy(update={"files": {**manifest.files, name: "0"}}).index_version for name in FILES}
    assert len(versions) == len(FILES) + 1


def test_manifest_with_an_altered_instruction_is_refused(bundle):
    tasks = {name: {"query": "other ", "passage": "other "} for name in TASKS}
    rewrite(bundle, seal=False, tasks=tasks)
    with pytest.raises(BundleError):
        verify(bundle)


PROBED = ["a fox", "a list of cities", "the old bridge"]


def probed(bundle, encoder, **fields):
    """The bundle with a probe, and its manifest."""
    write_probe(PROBED, encode_prompted(encoder, PROBED), bundle)
    rewrite(bundle, files=hashes(bundle), **fields)
    return verify(bundle)


def turned(vector_ND, cosine):
    """Unit vectors at a cosine to others."""
    side_ND = np.roll(vector_ND, 1, axis=1)
    side_ND -= (side_ND * vector_ND).sum(1, keepdims=True) * vector_ND
    side_ND /= np.linalg.norm(side_ND, axis=1, keepdims=True)
    return cosine * vector_ND + np.sqrt(1 - cosine**2) * side_ND


def test_bundle_is_served_in_another_number_format_if_every_probed_vector_stays_near(bundle, encoder):
    manifest = probed(bundle, encoder)
    vector_ND = encode_prompted(encoder, PROBED).astype(np.float64)
    check_probe(bundle, manifest, "bfloat16", lambda texts: turned(encode_prompted(encoder, texts), 0.9992))
    one_off = vector_ND.copy()
    one_off[1] = turned(vector_ND, 0.998)[1]
    for wrong in (one_off, turned(vector_ND, 0.9985), vector_ND * np.nan):
        with pytest.raises(BundleError, match=r"in bfloat16 the least cosine of 3 texts .* 0\.999 is asked") as caught:
            check_probe(bundle, manifest, "bfloat16", lambda texts, wrong=wrong: wrong)
        assert "\n" not in str(caught.value)


def test_ranks_may_differ_by_a_number_format_and_not_by_another_encoder(tmp_path):
    random = np.random.default_rng(0)
    vector_ND = random.normal(size=(64, 384))
    vector_ND /= np.linalg.norm(vector_ND, axis=1, keepdims=True)
    # Two that are the same: which of them comes first says nothing.
    vector_ND[7] = vector_ND[3]
    probe = Probe(texts=[f"text {i}" for i in range(64)], vectors=(3 * vector_ND).tolist())
    assert probe.asked == list(range(0, 64, 4)) and Probe(texts=["a"], vectors=[[1.0]]).asked == [0]
    given = vector_ND[probe.asked]
    noise = random.normal(size=given.shape) / np.sqrt(384)
    for fitting in (
        given,
        turned(given, 0.9999),
        (given + 0.01 * noise) / np.linalg.norm(given + 0.01 * noise, axis=1, keepdims=True),
    ):
        check_ranks(tmp_path, probe, fitting)
    others = turned(given, 0.9)
    for wrong, words in (
        (given[::-1], r"gives 1[0-6] of them other nearest texts than offline, and the least cosine .* is -?0\.[01]"),
        (others, r"least cosine to their vectors is 0\.9000 \(0\.999 is asked\)"),
        (given * np.nan, "is nan"),
        # Of one text alone.
        (np.concatenate([given[:5], given[5:6][:, ::-1], given[6:]]), "gives 1 of them other nearest texts"),
    ):
        with pytest.raises(ProbeError, match=words) as caught:
            check_ranks(tmp_path, probe, wrong)
        assert "\n" not in str(caught.value)


def test_bundle_without_a_probe_is_served_in_its_own_number_format_alone(bundle):
    with pytest.raises(BundleError, match=r"no probe\.json to compare"):
        check_probe(bundle, verify(bundle), "int8", lambda texts: np.zeros((len(texts), 1)))


@pytest.mark.parametrize("content", ["{}", "no JSON", '{"texts": [1], "vectors": []}', '{"texts": [], "vectors": []}'])
def test_bundle_with_a_damaged_probe_is_refused_in_one_line(bundle, encoder, content):
    manifest = probed(bundle, encoder)
    (bundle / PROBE).write_text(content, encoding="utf-8")
    with pytest.raises(BundleError, match="SHA-256 differs"):
        check_probe(bundle, manifest, "int8", lambda texts: encode_prompted(encoder, texts))
    rewrite(bundle, files=hashes(bundle))
    with pytest.raises(BundleError, match="no probe") as caught:
        check_probe(bundle, verify(bundle), "int8", lambda texts: encode_prompted(encoder, texts))
    assert "\n" not in str(caught.value)


def test_bundle_encoder_is_loaded_in_the_number_format_of_its_vectors_or_the_one_asked_for(bundle, encoder):
    manifest = probed(bundle, encoder, dtype="int8")
    assert bundle_encoder(bundle, manifest).dtype == "int8"
    assert bundle_encoder(bundle, manifest, "float32").dtype == "float32"
