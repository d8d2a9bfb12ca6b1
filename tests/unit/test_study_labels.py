"""Labels without texts: written out of a run, read back into a prepared one, refused where a text has changed."""

from __future__ import annotations

import shutil

import pyarrow.parquet as pq
import pytest

from benchmarks.study_labels import labelled_groups, main, write_labels
from embedder.config.load import load_run
from embedder.data.records import QUERY, read_tables, write_table
from embedder.errors import LabelError
from ray_jobs.cluster.tables import candidate_groups, labelled_ledger
from tests.unit.study_run import WORDS, write_study_run


@pytest.fixture
def run(tmp_path):
    """A run file with labels; no model is needed to move them."""
    return write_study_run(tmp_path, tmp_path / "encoder", tmp_path / "llm")


def options(tmp_path, run, what):
    return [what, "--config", str(run), "--labels", str(tmp_path / "labels")]


def labels_of(config):
    return labelled_groups(config.paths, labelled_ledger(config))


def test_labels_come_back_as_they_were(tmp_path, run, capsys):
    config = load_run(str(run))
    before, candidates = labels_of(config), candidate_groups(config.paths).sort_by("query")
    assert main(options(tmp_path, run, "write")) == 0
    assert "nq: 8 labelled groups" in capsys.readouterr().out
    for folder in (config.paths.candidates, config.paths.labelled):
        shutil.rmtree(folder)
    assert main(options(tmp_path, run, "read")) == 0
    assert labels_of(config) == before and candidate_groups(config.paths).sort_by("query") == candidates


def test_labelling_goes_on_from_a_part_of_the_labels(tmp_path, run, capsys):
    config = load_run(str(run))
    before, candidates = labels_of(config), candidate_groups(config.paths).sort_by("query")
    shutil.rmtree(config.paths.labelled)
    labelled_ledger(config).commit(before[:3])
    assert main(options(tmp_path, run, "write")) == 0
    for folder in (config.paths.candidates, config.paths.labelled):
        shutil.rmtree(folder)
    assert main(options(tmp_path, run, "read")) == 0
    assert candidate_groups(config.paths).sort_by("query") == candidates
    assert labelled_ledger(config).read().to_pylist() == before[:3]
    with pytest.raises(LabelError, match=f"{len(before) - 3} of {len(before)} rows missing"):
        labels_of(config)


def test_label_files_hold_no_text_of_the_data(tmp_path, run):
    write_labels(load_run(str(run)), tmp_path / "labels")
    for path in (tmp_path / "labels").iterdir():
        kept = pq.read_table(path).to_pylist()
        assert not any(word in str(kept) for word in (*WORDS, "Paris"))
        assert [one["sampled"] for one in kept[0]["outputs"]] == [None, "a sample of the LLM", "another one"]


@pytest.mark.parametrize(("what", "told"), [("query", "query train3 is not"), ("answers", "query train3 is not")])
def test_labels_of_another_query_are_refused_in_one_line(tmp_path, run, capsys, what, told):
    config = load_run(str(run))
    write_labels(config, tmp_path / "labels")
    path = config.paths.queries / "train" / "nq.parquet"
    rows = read_tables([path], QUERY).to_pylist()
    rows[3][what] = ["Rome"] if what == "answers" else "changed"
    write_table(rows, QUERY, path)
    shutil.rmtree(config.paths.candidates)
    assert main(options(tmp_path, run, "read")) == 2
    (line,) = capsys.readouterr().out.strip().splitlines()
    assert told in line and "nq.parquet" in line and "prepare nq by the run file" in line
    assert not config.paths.candidates.exists()


def test_labels_of_another_passage_are_refused(tmp_path, run, capsys):
    config = load_run(str(run))
    write_labels(config, tmp_path / "labels")
    path = config.paths.corpus / "pubmedqa" / "part-00000.parquet"
    table = pq.read_table(path)
    rows = table.to_pylist()
    rows[2]["text"] += "!"
    write_table(rows, table.schema, path)
    assert main(options(tmp_path, run, "read")) == 2
    assert "passage p2 is not the one that was labelled" in capsys.readouterr().out


def test_labels_that_are_not_there_are_told(tmp_path, run, capsys):
    assert main(options(tmp_path, run, "read")) == 2
    assert "no labels; fetch the repository's" in capsys.readouterr().out
