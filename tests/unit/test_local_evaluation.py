"""Encoders on a split without Ray: rankings, likelihoods that are kept, groups, and the command."""

from __future__ import annotations

import json

import pyarrow.parquet as pq
import pytest
import yaml

from embedder.config.load import load_run
from embedder.config.tasks import BUILTIN_TASKS
from embedder.data.records import PASSAGE, QUERY, write_table
from embedder.errors import DataError
from embedder.evaluation.__main__ import encoder_names, main
from embedder.evaluation.comparison import summarise
from embedder.evaluation.judge import LlmJudge
from embedder.evaluation.local import (
    WITHOUT_ENCODER,
    ask_llm,
    measure_encoder,
    measure_without_encoder,
    read_sets,
)
from embedder.evaluation.replies import judged_ledger
from embedder.labelling.prompts import read_shot_pools
from embedder.models.causal_lm import load_lm
from embedder.models.encoder import encode, load_encoder

WORDS = ["fox", "dog", "forest", "bridge", "market", "station", "capital", "city", "list", "dict"]


def prepared_row(task, dataset, number, **fields):
    empty = {**dict.fromkeys(QUERY.names), "answers": [f"Paris {number}"], "positive_ids": [f"p{number}"]}
    known = {"task": task, "dataset": dataset, "query_id": f"q{number}", "query": f"where is the {WORDS[number]}"}
    return {**empty, **known, **fields}


def passage(task, dataset, name, text, answer=None):
    return {"task": task, "dataset": dataset, "id": name, "text": text, "title": None, "answer": answer}


@pytest.fixture(scope="module")
def run_file(tmp_path_factory, tiny_encoder_folder, tiny_llama_folder):
    """Prepared tables of qa, icl (whose dev queries stand in the corpus) and chat."""
    folder = tmp_path_factory.mktemp("quick")
    work = folder / "work" / "prepared"
    texts = {f"p{i}": f"the {word} is behind the old bridge" for i, word in enumerate(WORDS)}
    corpora = {
        "docs": [passage("qa", "docs", name, text) for name, text in texts.items()],
        "kinds": [
            passage("icl", "kinds", f"q{i}", f"{word} place", "yes" if i % 2 else "no") for i, word in enumerate(WORDS)
        ],
        "talk": [passage("chat", "talk", f"t{i}", f"Speaker 1: the {word}") for i, word in enumerate(WORDS)],
    }
    turns = [f"t{i}" for i in range(4)]
    yes_no = {"options": ["yes", "no"], "positive_ids": []}
    queries = {
        "docs": [prepared_row("qa", "docs", i) for i in range(6)],
        "kinds": [
            prepared_row("icl", "kinds", i, answers=["yes" if i % 2 else "no"], example_ids=[f"q{i}"], **yes_no)
            for i in range(6)
        ],
        "talk": [
            prepared_row("chat", "talk", i, positive_ids=[], pool_ids=turns, origin=f"c{i % 2}") for i in range(6)
        ],
    }
    for name, rows in corpora.items():
        write_table(rows, PASSAGE, work / "corpus" / name / "part-00000.parquet")
        write_table(queries[name], QUERY, work / "queries" / "dev" / f"{name}.parquet")
        write_table(queries[name], QUERY, work / "queries" / "train" / f"{name}.parquet")
    run = {
        "paths": {"work": str(folder / "work"), "cache": str(folder / "cache")},
        "encoder": {"model": str(tiny_encoder_folder), "pooling": "mean", "max_tokens": 64, "instructions": False},
        "llm": {"model": str(tiny_llama_folder), "max_prefix_tokens": 200, "batch_tokens": 1024},
        "evaluate": {"split": "dev", "retrievers": ["base"], "llm_queries": 3, "resamples": 100, "unit_queries": 2},
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(run), encoding="utf-8")
    return path


@pytest.fixture
def config(run_file):
    return load_run(run_file)


@pytest.fixture(scope="module")
def encoder(tiny_encoder):
    return load_encoder(tiny_encoder, device="cpu")


def test_local_evaluation_rankings_are_by_inner_product_and_no_query_finds_itself(config, encoder):
    sets = read_sets(config, "dev")
    measure_encoder("mine", encoder, BUILTIN_TASKS, sets, config.evaluate)
    for one in sets:
        spec, rankings = BUILTIN_TASKS[one.measured.task], one.measured.rankings["mine"]
        for row in one.measured.rows:
            ids = [name for name in (row["pool_ids"] or one.texts) if name != row["query_id"]]
            query = encode(encoder, [row["query"]], spec, "query")[0]
            scores = encode(encoder, [one.texts[name] for name in ids], spec, "passage") @ query
            found = dict(rankings[row["query_id"]])
            assert set(found) == set(ids)
            assert [found[name] for name in ids] == pytest.approx(list(scores), abs=1e-5)
            assert list(found.values()) == sorted(found.values(), reverse=True)


def test_read_sets_a_choice_of_queries_is_seeded_and_grows(config):
    chosen = {one.measured.name: {row["query_id"] for row in one.measured.rows} for one in read_sets(config, "dev", 2)}
    more = {one.measured.name: {row["query_id"] for row in one.measured.rows} for one in read_sets(config, "dev", 4)}
    assert all(len(chosen[name]) == 2 and chosen[name] < more[name] for name in ("docs", "kinds", "talk"))


def test_read_sets_a_split_that_is_not_there_is_refused(config):
    with pytest.raises(DataError, match="no test queries; give a source"):
        read_sets(config, "test")


def test_ask_llm_computes_equal_prompts_of_encoders_once(config, encoder, tiny_llm, tmp_path):
    settings = config.evaluate
    lm = load_lm(tiny_llm, tmp_path / "cache", device="cpu")
    judge = LlmJudge(lm, tiny_llm, config.tasks, settings, read_shot_pools(config))
    sets = read_sets(config, "dev")
    measure_encoder("base", encoder, BUILTIN_TASKS, sets, settings)
    first = ask_llm(sets, judge, settings, tmp_path)
    assert first == 3 * 3
    measure_encoder("twin", encoder, BUILTIN_TASKS, sets, settings)
    assert ask_llm(sets, judge, settings, tmp_path) == 0
    assert len(judged_ledger(tmp_path).done()) == first
    for one, measure in zip(sets, ("exact match", "accuracy", "perplexity"), strict=True):
        values = one.measured.values[measure]
        assert len(values["base"]) == 3 and values["base"] == values["twin"]
    assert summarise([one.measured for one in sets], settings)["tasks"]["chat"]["headline"] == "perplexity"


def test_local_evaluation_recency_is_the_latest_of_a_history_and_of_nothing_else(config):
    sets = read_sets(config, "dev")
    for kind in WITHOUT_ENCODER:
        measure_without_encoder(kind, sets, config.evaluate, config.words)
    found = {one.measured.name: one.measured.rankings for one in sets}
    assert {name for name, rankings in found.items() if "recency" in rankings} == {"talk"}
    for row in next(one.measured.rows for one in sets if one.measured.name == "talk"):
        assert [name for name, _ in found["talk"]["recency"][row["query_id"]]] == row["pool_ids"][::-1]
    assert all(rankings["none"] == {} for rankings in found.values())
    for one in sets:
        for row in one.measured.rows:
            for kind in ("random", "bm25"):
                names = [name for name, _ in one.measured.rankings[kind][row["query_id"]]]
                assert set(names).isdisjoint(row["example_ids"] or [])
                assert set(names) <= set(row["pool_ids"] or one.texts)
    assert all(len(ranking) == 10 for ranking in found["docs"]["random"].values())
    # "where is the fox" finds the passage about the fox first, by its one rare word.
    assert all(found["docs"]["bm25"][f"q{i}"][0][0] == f"p{i}" for i in range(6))


def test_encoder_names_encoders_are_called_by_what_tells_them_apart():
    assert encoder_names(["runs/a/model"]) == ["model"]
    assert encoder_names(["runs/a/model", "runs/b/model", "base"]) == ["a-model", "b-model", "base"]
    assert encoder_names(["./my model", "package:name/model"]) == ["my-model", "model"]


def test_encoder_in_which_one_stands_is_called_by_its_folder(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path / "mine")
    assert encoder_names(["."]) == ["mine"]


@pytest.mark.parametrize("wrong", [["--queries", "0"], ["--queries", "-28"], ["--llm", "-1"], ["--out", "run.yaml"]])
def test_evaluation_command_refuses_before_it_measures(run_file, wrong, capsys):
    wrong = [str(run_file) if each == "run.yaml" else each for each in wrong]
    with pytest.raises(SystemExit, match="2"):
        main(["--config", str(run_file), *wrong, "base"])
    assert capsys.readouterr().out.startswith("error: ")


def test_evaluation_command_compares_encoders(run_file, tiny_encoder_folder, tmp_path, capsys):
    encoders = ["base", str(tiny_encoder_folder), "none", "recency"]
    main(["--config", str(run_file), "--llm", "2", "--out", str(tmp_path / "out"), *encoders])
    assert "nDCG@10" in capsys.readouterr().out
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (results["split"], results["baseline"], len(results["retrievers"])) == ("dev", "base", 4)
    asked = {name: set(one["measures"][one["headline"]]["retrievers"]) for name, one in results["datasets"].items()}
    assert {name for name, retrievers in asked.items() if "recency" in retrievers} == {"talk"}
    assert all(
        "none" in results["datasets"][name]["measures"]["log-likelihood"]["retrievers"] for name in ("docs", "kinds")
    )
    assert results["datasets"]["docs"]["measures"]["log-likelihood"]["queries"] == 2
    assert "exact match" not in results["datasets"]["docs"]["measures"]
    assert set(pq.read_table(tmp_path / "out" / "values.parquet")["dataset"].to_pylist()) == {"docs", "kinds", "talk"}


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["base", "/nowhere"], "no such folder"),
        (["base", "base"], "named twice"),
        (["--split", "test", "base"], "no test queries"),
        (["--set", "llm=null", "--llm", "1", "base"], "no `llm` section"),
    ],
)
def test_evaluation_command_says_what_is_wrong(run_file, capsys, arguments, reason):
    with pytest.raises(SystemExit) as caught:
        main(["--config", str(run_file), *arguments])
    assert caught.value.code == 2
    output = capsys.readouterr().out
    assert output.startswith("error: ") and reason in " ".join(output.split())
