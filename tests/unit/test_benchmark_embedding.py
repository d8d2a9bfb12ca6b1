"""The embedding benchmark: equal texts for both, vectors compared, figures written."""

from __future__ import annotations

import json

import pytest

from benchmarks import embedding


@pytest.fixture
def data(tmp_path):
    words = ["fox", "dog", "forest", "bridge", "market", "station", "capital", "city"]
    folder = tmp_path / "data" / "qa" / "nq"
    folder.mkdir(parents=True)
    passages = [{"id": str(i), "text": " ".join(words[(i * j) % 8] for j in range(1, 25))} for i in range(40)]
    (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, passages)), encoding="utf-8")
    queries = [{"query": f"where is the {word}"} for word in words]
    (folder / "test.jsonl").write_text("\n".join(map(json.dumps, queries)), encoding="utf-8")
    return tmp_path / "data"


def test_vectors_are_those_of_sentence_transformers_and_figures_are_written(
    data, tiny_encoder_folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(embedding, "ROUND", 10)
    monkeypatch.setattr(embedding, "TOKENS", (20, 60))
    out = tmp_path / "embedding.json"
    command = ["--data", str(data), "--model", str(tiny_encoder_folder), "--rounds", "2", "--json", str(out)]
    assert embedding.main([*command, "--part", "passages", "--part", "query"]) == 0
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["passages"]["distance"] < 1e-5
    assert len(found["passages"]["gain"]) == 2
    assert {"vs_sentence_transformers", "share_of_limit", "query_ms_vs_torch"} <= set(found)
    assert "ours to theirs" in capsys.readouterr().out


def test_without_data_it_says_so(tmp_path, capsys):
    assert embedding.main(["--data", str(tmp_path)]) == 1
    assert "no data" in capsys.readouterr().out
