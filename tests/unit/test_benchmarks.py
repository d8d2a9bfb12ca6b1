"""Every benchmark runs at its smallest, on the demo's text and tiny models, and prints and keeps its figures.

What a benchmark finds of equality (vectors, losses, scores beside those of others) holds on tiny models too.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

from benchmarks.study_tables import BEGIN, END
from embedder.demo.build import build
from tests.unit.study_run import write_study_run
from tests.unit.tiny_folders import bert_folder

USED = {
    "qa/nq": "qa/python-docs",
    "qa/pubmedqa": "qa/python-docs",
    "tool/metatool": "tool/stdlib",
    "tool/apibench": "tool/stdlib",
    "icl/clinc150": "icl/issue-type",
    "lrlm/books": "lrlm/stdlib-source",
}
"""Datasets that benchmarks read, and those of the demo that stand for them."""
QUERIES, PASSAGES, CHARACTERS = 40, 60, 160
"""What is kept: lines of a file of queries and of a corpus, and the beginning of a passage."""


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """The demo's text under the names of the real data, so little that every benchmark reads it in a moment."""
    folder = tmp_path_factory.mktemp("benchmarks")
    build(folder / "demo")
    for name, demo in USED.items():
        positives: set[str] = set()
        for file in sorted((folder / "demo" / demo).glob("*.jsonl"), reverse=True):  # queries before their corpus
            rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
            if file.stem == "corpus":
                rows.sort(key=lambda row: row["id"] not in positives)
                rows = [row | {"text": row["text"][:CHARACTERS]} for row in rows[: max(PASSAGES, len(positives))]]
            else:
                rows = rows[:QUERIES]
                positives |= {passage for row in rows for passage in row.get("pos_ids", [])}
            path = folder / "data" / name / file.name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder / "data"


@pytest.fixture
def quick_limit(monkeypatch) -> None:
    """The rate of the machine's matrix products is taken of small ones and in a moment."""
    monkeypatch.setattr("benchmarks.labelling_limit.SECONDS", 0.001)
    monkeypatch.setattr("benchmarks.labelling_limit.SQUARES", (32,))


def figures(capsys, tmp_path, name: str, *arguments: object) -> tuple[dict, str]:
    """What the benchmark keeps in its file, and what it prints."""
    file = tmp_path / "figures.json"
    main = importlib.import_module(f"benchmarks.{name}").main
    assert main([*map(str, arguments), "--json", str(file)]) == 0
    return json.loads(file.read_text(encoding="utf-8")), capsys.readouterr().out


def parts(*names: str) -> list[str]:
    return [word for name in names for word in ("--part", name)]


@pytest.mark.slow
def test_benchmark_embedding_has_the_vectors_of_sentence_transformers(
    capsys, tmp_path, data, tiny_encoder_folder, quick_limit
):
    options = ["--data", data, "--model", tiny_encoder_folder, "--rounds", 1, "--size", 8, "--max-tokens", 128]
    found, shown = figures(capsys, tmp_path, "embedding", *options, *parts("passages", "query", "int8"))
    assert found["passages"]["distance"] < 1e-5
    assert found["vs_sentence_transformers"] > 0 and found["share_of_limit"] > 0 and found["query_ms_vs_torch"] > 0
    assert "ours to theirs" in shown and "cosine to float32" in shown


@pytest.mark.slow
def test_benchmark_labelling_has_the_scores_of_float64(capsys, tmp_path, data, tiny_llama_folder, quick_limit):
    options = ["--data", data, "--model", tiny_llama_folder, "--cache", tmp_path / "cache", "--rounds", 1]
    run = parts("cap8", "shared", "sampling", "accuracy")
    found, shown = figures(capsys, tmp_path, "labelling", *options, *run)
    assert found["max_error_float64"] < 1e-4 and found["accuracy"]["B"]["mean"] < 1e-4
    assert found["rank_vs_naive_cap8"] > 0 and found["shared_passages_gain"] > 0 and found["sampling_vs_single"] > 0
    assert "pairs/s" in shown and "nats a token" in shown


@pytest.mark.slow
def test_benchmark_training_has_the_losses_and_gradients_of_others(
    capsys, tmp_path, data, tiny_encoder_folder, quick_limit
):
    options = ["--data", data, "--model", tiny_encoder_folder, "--rounds", 2]
    found, shown = figures(capsys, tmp_path, "training", *options, *parts("equality", "16", "profile"))
    for task in ("qa", "tool"):
        for way in ("ours", "peer"):
            assert found["equality"][task][way]["loss"] == pytest.approx(found["equality"][task]["loss"], rel=1e-5)
            # The vectors of a random encoder nearly coincide.
            assert found["equality"][task][way]["gradient"] < 3e-4
        assert sum(found["profile"][task].values()) == pytest.approx(1)
    assert found["16"]["rounds_taken"] == 2 and found["vs_sentence_transformers_16"] > 0
    assert "samples/s" in shown and "shares of a step's wall time" in shown


@pytest.mark.slow
def test_benchmark_search_finds_what_raw_faiss_finds(capsys, tmp_path, data):
    options = ["--data", data, "--cache", tmp_path / "cache", "--rows", 400, "--factory", "Flat", "--factory", "SQ8"]
    found, shown = figures(capsys, tmp_path, "search", *options, "--shards", 2)
    assert found["by_index"].keys() == {"Flat", "SQ8", "Flat, 2 shards", "auto, 2 shards"}
    assert found["by_index"]["Flat"]["same_as_raw"] == found["recall_at_10"]["Flat"] == 1.0
    assert "overhead_ms_32" in shown


@pytest.mark.parametrize("name", ["embedding", "labelling", "training", "search"])
def test_benchmark_without_data_says_so(capsys, tmp_path, name):
    assert importlib.import_module(f"benchmarks.{name}").main(["--data", str(tmp_path)]) == 1
    assert "no data" in capsys.readouterr().out


def test_benchmark_scaling_prints_its_tables(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["benchmarks.scaling", "--price", "2.2"])
    importlib.import_module("benchmarks.scaling").main()
    assert "GPU-hours" in capsys.readouterr().out


@pytest.fixture(scope="module")
def study(tmp_path_factory, tiny_encoder_folder, tiny_llama_folder) -> Path:
    """The run file of a small study."""
    return write_study_run(tmp_path_factory.mktemp("study"), tiny_encoder_folder, tiny_llama_folder)


def test_benchmark_study_trains_goes_on_and_reports(capsys, tmp_path, study):
    main = importlib.import_module("benchmarks.study").main
    options = ["--config", str(study), "--results", str(tmp_path), "--arm", "shuffled", "--arm", "likelihood"]
    options += ["--trainings", "1"]
    assert main([*options, "--report"]) == 2
    assert "base.json: not there yet" in capsys.readouterr().out
    assert main(options) == 0
    kept = {path.stem: path.stat().st_mtime_ns for path in tmp_path.glob("study/*.json")}
    assert set(kept) == {"base", "bm25", "recency", "full-00", "shuffled-00", "likelihood-00"}
    assert not any(text in path.read_text() for path in tmp_path.glob("study/*.json") for text in ("fox", "Paris"))
    assert main(options) == 0
    assert {path.stem: path.stat().st_mtime_ns for path in tmp_path.glob("study/*.json")} == kept
    values = tmp_path / "study" / "full-00.json"
    before = json.loads(values.read_text(encoding="utf-8"))
    (model,) = study.parent.glob("work/study/full-00-*/model")
    made = model.stat().st_mtime_ns
    values.unlink()
    assert main(options) == 0
    again = json.loads(values.read_text(encoding="utf-8"))
    assert again["values"] == before["values"] and model.stat().st_mtime_ns == made, "measured again, not trained"
    page = tmp_path / "STUDY.md"
    assert main([*options, "--report"]) == 2
    assert "STUDY.md: has no lines" in capsys.readouterr().out
    page.write_text(f"# Study\n\n{BEGIN}\nold\n{END}\n\nafter\n", encoding="utf-8")
    assert main([*options, "--report"]) == 0
    shown = page.read_text(encoding="utf-8")
    assert shown.startswith("# Study") and shown.endswith("after\n") and "old" not in shown
    assert "### Data that no training saw, by task" in shown and "likelihood rewards in every task" in shown
    assert (tmp_path / "study.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads((tmp_path / "study.json").read_text(encoding="utf-8"))
    claim = found["unseen"]["qa"]
    assert claim["datasets"] == ["pubmedqa"] and claim["low"] <= claim["gain"] <= claim["high"]
    assert {row["datasets"][0] for row in found["tables"]["trained on"]} == {"nq"}
    assert found["trainings"]["full"] == 1 and found["tasks_gaining_unseen"] in (0, 1)


def test_benchmark_study_refuses_values_of_other_settings(capsys, tmp_path, study):
    main = importlib.import_module("benchmarks.study").main
    options = ["--config", str(study), "--results", str(tmp_path), "--arm", "full", "--trainings", "0"]
    assert main(options) == 0
    capsys.readouterr()
    assert main([*options, "--set", "train.steps=4"]) == 2
    assert "base.json: of other data, labels or settings than these; remove it" in capsys.readouterr().out


def test_benchmark_study_ceiling_prints_a_line_a_measure(capsys, study):
    assert importlib.import_module("benchmarks.study_ceiling").main(["--config", str(study), "--passages", "2"]) == 0
    shown = capsys.readouterr().out
    assert "qa, nq, log-likelihood (2 queries)" in shown and "best of the base's" in shown


@pytest.mark.slow
@pytest.mark.ray
def test_benchmark_embedding_through_ray(capsys, tmp_path, data, tiny_encoder_folder):
    options = ["--data", data, "--model", tiny_encoder_folder, "--max-tokens", 128, "--part", "ray"]
    found, shown = figures(capsys, tmp_path, "embedding", *options, "--rounds", 1, "--size", 16)
    assert 0 <= found["ray_data_share"] <= 1 and "passages/s once up" in shown


@pytest.mark.slow
@pytest.mark.ray
def test_benchmark_scheduler_labels_every_group(capsys, tmp_path, tiny_llama_folder, tiny_encoder_folder):
    options = ["--rows", 40, "--model", tiny_llama_folder, "--encoder", tiny_encoder_folder]
    found, shown = figures(capsys, tmp_path, "scheduler", *options)
    assert found["runs"][0]["rows"] == 40 and "ms a group" in shown


@pytest.mark.slow
@pytest.mark.ray
def test_benchmark_serving_has_the_vectors_of_pytorch(capsys, tmp_path, data):
    model = bert_folder(tmp_path / "model", max_position_embeddings=256)
    options = ["--data", data, "--model", model, "--cache", tmp_path / "cache", "--seconds", 0.5, "--turns", 1]
    found, shown = figures(capsys, tmp_path, "serving", *options, "--part", "short", "--system", "ours")
    assert found["short"]["ours"]["distance"] < 1e-4 and found["p99_over_p50"] >= 1
    assert "requests/s" in shown


@pytest.mark.slow
def test_benchmark_training_measures_workers_and_memory(capsys, tmp_path, data, tiny_encoder_folder, monkeypatch):
    monkeypatch.setattr("benchmarks.training_parts.MANY_QUERIES", 4)
    options = ["--data", data, "--model", tiny_encoder_folder, "--max-tokens", 32, "--rounds", 1]
    found, _ = figures(capsys, tmp_path, "training", *options, *parts("workers", "memory"))
    assert found["two_workers_vs_one"] > 0 and found["memory"]["peak_bytes"] > 50e6
