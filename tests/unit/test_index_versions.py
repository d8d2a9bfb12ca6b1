"""Versions, aliases and snapshots; shards of a version; and what must be refused before it is served."""

from __future__ import annotations

import json
import shutil
import threading

import numpy as np
import pytest

from embedder.errors import BundleError, ConfigError
from embedder.hashing import file_sha256
from embedder.index.bundle import Manifest, read_manifest, shard_folder, verify
from embedder.index.catalog import Catalog
from embedder.index.collection import CollectionInfo
from embedder.index.documents import Document
from embedder.index.filters import equals
from embedder.index.manifest import hash_files
from embedder.index.opened import OpenIndex, combine
from embedder.index.probe import PROBE, read_probe, write_probe
from embedder.index.search_options import SearchOptions
from embedder.index.state_places import StatePlaces
from tests.unit.index_cases import count, documents_of, ids, live_catalog, opened, unit, write_version

NAMES = [f"b{i:02}" for i in range(30)]
VECTORS = unit(np.random.default_rng(3), 40)
QUERY = VECTORS[:2]
TOP = SearchOptions(k=5)


@pytest.fixture
def catalog(tmp_path):
    """A catalog with one version of two shards."""
    return live_catalog(tmp_path / "indexes", documents_of(NAMES), VECTORS[:30])


def test_index_answer_does_not_depend_on_the_number_of_shards(tmp_path):
    answers = []
    for shards in (1, 2, 4):
        write_version(tmp_path / str(shards), documents_of(NAMES), VECTORS[:30], shards)
        index = OpenIndex.open(tmp_path / str(shards), StatePlaces.beside(tmp_path / str(shards)))
        index.upsert("qa", documents_of(["new"], session="s"), VECTORS[:1])
        index.delete("qa", [("b01", "d")])
        options = [TOP, SearchOptions(k=5, filter=equals("session", "s"))]
        answers.append([index.search("qa", one, QUERY).hits() for one in options])
    assert answers[0] == answers[1] == answers[2]


def test_index_shards_in_processes_of_their_own_give_the_same_answer(catalog):
    index, bundle, state = opened(catalog), catalog.bundle("one"), catalog.state("one", "live")
    alone = [OpenIndex.open(bundle, state, [shard]) for shard in (0, 1)]
    index.upsert("qa", documents_of(["new"]), VECTORS[:1])
    for mode in ("dense", "lexical", "hybrid"):
        options, texts = SearchOptions(k=5, mode=mode), ["text b03", "new"]
        parts = [one.rank("qa", options, QUERY, texts) for one in alone]
        assert combine(parts, options).hits() == index.search("qa", options, QUERY, texts).hits()


def test_hybrid_search_finds_what_words_and_vectors_find(catalog):
    index = opened(catalog)
    index.upsert("qa", [Document(id="word", text="zebra")], VECTORS[35:36])
    lexical, dense, hybrid = (
        index.search("qa", SearchOptions(k=3, mode=mode), VECTORS[4:5], ["zebra"])
        for mode in ("lexical", "dense", "hybrid")
    )
    assert ids(lexical) == [["word"]]
    assert ids(dense)[0][0] == "b04"
    # The word document comes first: it stands in both rankings.
    assert ids(hybrid)[0][:2] == ["word", "b04"]


def test_search_mode_must_be_given_what_it_needs(catalog):
    index = opened(catalog)
    with pytest.raises(ValueError, match="needs query vectors"):
        index.search("qa", TOP)
    with pytest.raises(ValueError, match="needs the texts"):
        index.search("qa", SearchOptions(mode="lexical"), QUERY)
    with pytest.raises(ConfigError, match=r"task 'tool': the index has \['qa'\]"):
        index.search("tool", TOP, QUERY)
    alone = OpenIndex.open(catalog.bundle("one"), catalog.state("one", "live"), [0])
    with pytest.raises(ConfigError, match="is not open here"):
        alone.upsert("qa", documents_of(NAMES), VECTORS[:30])
    with pytest.raises(ConfigError, match="needs all 2 shards"):
        alone.snapshot(catalog, "two")


def test_snapshot_is_a_version_with_all_there_was_and_the_old_one_goes_on(catalog):
    index = opened(catalog)
    index.upsert("qa", documents_of(["new"]), VECTORS[:1])
    index.delete("qa", [("b05", "d")])
    before = index.search("qa", SearchOptions(k=40), QUERY).hits()
    index.snapshot(catalog, "two")
    snapshot = opened(catalog, "two")
    assert snapshot.search("qa", SearchOptions(k=40), QUERY).hits() == before
    index.upsert("qa", documents_of(["later"]), VECTORS[:1])
    assert read_manifest(catalog.bundle("two")).collections == {"qa": 30}
    assert read_manifest(catalog.bundle("two")).model_version == index.manifest.model_version
    # Both are versions of one index, so that what is written later is in both.
    assert (count(index), count(snapshot)) == (31, 31)
    catalog.point("live", "two")
    assert catalog.resolve("live") == "two"


def test_snapshot_keeps_the_probe_by_which_encoders_are_tried(catalog):
    bundle = catalog.bundle("one")
    write_probe(["a fox"], np.eye(1, 8), bundle)
    manifest = read_manifest(bundle)
    manifest.model_copy(update={"files": {**manifest.files, PROBE: file_sha256(bundle / PROBE)}}).write(bundle)
    opened(catalog).snapshot(catalog, "two")
    assert read_probe(catalog.bundle("two"), verify(catalog.bundle("two"))).texts == ["a fox"]


def test_snapshot_is_restored_elsewhere(catalog, tmp_path):
    index = opened(catalog)
    index.upsert("qa", documents_of(["new"]), VECTORS[:1])
    index.snapshot(catalog, "two")
    other = Catalog(tmp_path / "other")
    other.restore(catalog.bundle("two"), "restored")
    assert count(opened(other, "restored")) == 31


def test_snapshot_taken_while_others_write_holds_whole_batches(catalog):
    index, stop = opened(catalog), threading.Event()

    def write():
        batch = 0
        while not stop.is_set():
            index.upsert("qa", documents_of([f"w{batch}-{i}" for i in range(10)]), VECTORS[:10])
            batch += 1

    writer = threading.Thread(target=write)
    writer.start()
    for i in range(4):
        index.snapshot(catalog, f"s{i}")
    stop.set()
    writer.join()
    sizes = [read_manifest(catalog.bundle(f"s{i}")).collections["qa"] for i in range(4)]
    assert sizes == sorted(sizes)
    assert all(size % 10 == 0 for size in sizes)


def test_index_that_is_built_anew_under_its_name_shows_what_was_written(catalog, tmp_path):
    index = opened(catalog)
    index.upsert("qa", documents_of(["new"]), VECTORS[:1])
    assert index.compact() == 1
    other = tmp_path / "other"
    other.mkdir()
    write_version(other, documents_of("ab"), VECTORS[:2])
    shutil.rmtree(catalog.bundle("one"))
    shutil.copytree(other, catalog.bundle("one"))
    assert count(opened(catalog)) == 3


def test_index_to_which_an_earlier_version_of_the_program_has_written_is_refused(catalog):
    state = catalog.state("one", "live").generations
    state.mkdir(parents=True)
    (state / "BUNDLE").write_text("digest", encoding="ascii")
    with pytest.raises(BundleError, match="to a log of another format"):
        opened(catalog)


def test_snapshot_takes_what_is_written_to_the_first_version_later_and_the_other_way_round(catalog):
    def texts(index: OpenIndex) -> dict[str, str]:
        return {hit.id: hit.text for hit in index.search("qa", SearchOptions(k=50), QUERY[:1]).hits()[0]}

    one = opened(catalog)
    one.upsert("qa", documents_of(["note", "b01"], mood="bad"), VECTORS[30:32])
    one.snapshot(catalog, "two")
    two = opened(catalog, "two")
    one.upsert("qa", [Document(id="note", text="changed", dataset="d")], VECTORS[30:31])
    one.delete("qa", [("b01", "d")])
    two.delete("qa", [("b02", "d")])
    assert texts(one) == texts(two) and texts(one)["note"] == "changed" and len(texts(one)) == 29


def test_batch_over_all_shards_is_one_commit(catalog):
    index = opened(catalog)
    index.upsert("qa", documents_of([f"w{i}" for i in range(20)]), VECTORS[:20])
    assert len(list((catalog.folder / "writes" / "live" / "qa" / "log").iterdir())) == 1


def spoilt_copies(path, random):
    """A file empty, cut at 10 places, and with 1 and 8 bytes flipped at 8 places each."""
    whole = path.read_bytes()
    yield b""
    for place in random.integers(0, len(whole), 10).tolist():
        yield whole[:place]
    for width in (1, 8):
        for place in random.integers(0, max(1, len(whole) - width), 8).tolist():
            spoilt = bytearray(whole)
            for i in range(place, min(place + width, len(whole))):
                spoilt[i] ^= 0xFF
            yield bytes(spoilt)


def test_index_with_any_damage_to_any_file_is_refused_by_name_and_the_open_one_goes_on(catalog):
    """D1: a service that restores or opens such a version refuses it; the one that is served answers as before."""
    serving, random = opened(catalog), np.random.default_rng(0)
    expected = serving.search("qa", TOP, QUERY).hits()
    copy = catalog.folder / "copy"
    shutil.copytree(catalog.bundle("one"), copy)
    names = [path.relative_to(copy).as_posix() for path in sorted(copy.rglob("*")) if path.is_file()]
    assert len(names) > 15
    refused = 0
    for name in names:
        whole = (copy / name).read_bytes()
        for spoilt in spoilt_copies(copy / name, random):
            (copy / name).write_bytes(spoilt)
            with pytest.raises(BundleError, match=name.split("/")[-1].replace(".", r"\.")):
                catalog.restore(copy, "damaged")
            refused += 1
        (copy / name).unlink()
        with pytest.raises(BundleError):
            catalog.restore(copy, "damaged")
        (copy / name).write_bytes(whole)
    assert refused > 300
    assert catalog.versions() == ["one"]
    assert serving.search("qa", TOP, QUERY).hits() == expected
    catalog.restore(copy, "whole")


def reseal(folder):
    """List the files as they are now, as one who tampers with all hashes would."""
    manifest = read_manifest(folder)
    (folder / Manifest.FILE).unlink()
    manifest.model_copy(update={"files": hash_files(folder)}).write(folder)


def test_index_with_swapped_shards_is_refused_even_where_all_hashes_fit(catalog):
    bundle = catalog.bundle("one")
    first, second = shard_folder(bundle, 0), shard_folder(bundle, 1)
    first.rename(bundle / "x")
    second.rename(first)
    (bundle / "x").rename(second)
    with pytest.raises(BundleError):
        opened(catalog)
    reseal(bundle)
    with pytest.raises(BundleError, match="shard is 1, not 0"):
        opened(catalog)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dimension": 9}, "dimension is 8, not 9"),
        ({"num_shards": 1}, "num_shards is 2, not 1"),
        ({"encoder_fingerprint": "other"}, "the vectors were made with model other"),
    ],
)
def test_index_of_another_width_or_model_is_refused_even_where_all_hashes_fit(catalog, fields, message):
    bundle = catalog.bundle("one")
    read_manifest(bundle).model_copy(update=fields).write(bundle)
    with pytest.raises(BundleError, match=message):
        opened(catalog)


def test_collection_without_its_ids_is_refused_even_where_all_hashes_fit(catalog):
    bundle = catalog.bundle("one")
    folder = shard_folder(bundle, 0) / "qa"
    (folder / "payload.arrow").unlink()
    info = CollectionInfo.read(folder)
    files = {name: digest for name, digest in info.files.items() if name != "payload.arrow"}
    info.model_copy(update={"files": files}).write(folder)
    reseal(bundle)
    with pytest.raises(BundleError, match=r"payload\.arrow: not readable"):
        opened(catalog)


@pytest.mark.parametrize("where", ["", "shards/00000/qa"])
def test_manifest_of_a_later_format_says_so(catalog, where):
    bundle = catalog.bundle("one")
    path = next((bundle / where).glob("*.json"))
    raw = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**raw, "format": 99, "new": 1}), encoding="utf-8")
    if where:
        reseal(bundle)
    with pytest.raises(BundleError, match="format 99, but this version reads format"):
        opened(catalog)


def test_bundle_with_a_link_that_leads_out_is_refused(catalog, tmp_path):
    bundle, outside = catalog.bundle("one"), tmp_path / "outside.json"
    (bundle / "model" / "config.json").rename(outside)
    (bundle / "model" / "config.json").symlink_to(outside)
    with pytest.raises(BundleError, match=r"config\.json: a link"):
        verify(bundle)
