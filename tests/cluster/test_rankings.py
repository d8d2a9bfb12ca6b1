"""Rankings and groups in tasks on a cluster, of parts so small that all trees have several levels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray

from embedder.config.mine import MineConfig
from embedder.config.paths import Paths
from embedder.config.run import EncoderConfig, RunConfig
from embedder.console import console, progress
from embedder.data.records import GROUP, PASSAGE, QUERY, read_tables, write_table
from embedder.mining.bm25 import LexicalIndex
from embedder.mining.candidates import make_group
from embedder.mining.ranking import best
from ray_jobs.cluster import task_tree
from ray_jobs.retrieval import candidate_groups, passages, ranking_files, vector_rankings, word_rankings
from ray_jobs.retrieval.ranking_files import QueryRows, RankingFiles, Search
from ray_jobs.retrieval.vectors import VectorStore
from tests.cluster.conftest import Cluster
from tests.unit.index_cases import unit
from tests.unit.stored_vectors import commit, passage, query

pytestmark = pytest.mark.ray
PASSAGES, QUERIES, FILES = 350, 40, 7
SEARCH = Search("train", "nq", 12)
WORDS = ["red", "fox", "brown", "dog", "river", "green", "barks", "sleeps", "near", "old"]


class Run:
    """A dataset with its rankings and groups as one process makes them."""

    def __init__(self, work: Path) -> None:
        random = np.random.default_rng(0)
        self.config = RunConfig(paths=Paths(work=work), encoder=EncoderConfig(model="none", pooling="mean"))
        self.store = VectorStore(self.config.paths.vectors / "encoder", self.config.tasks)
        names = [f"{letter}{number}" for letter in "zaé" for number in range(PASSAGES)][:PASSAGES]
        self.texts = {name: " ".join([name, *random.choice(WORDS, 9)]) for name in names}
        pools = {number: random.choice(names, 5, replace=False).tolist() for number in range(0, QUERIES, 5)}
        self.queries = [
            query(
                f"q{number}",
                " ".join(random.choice(WORDS, 4)),
                pool_ids=pools.get(number),
                positive_ids=[] if number in pools or number % 3 else [names[number]],
            )
            for number in range(QUERIES)
        ]
        self.vectors, self.asked = unit(random, PASSAGES, 16), unit(random, QUERIES, 16)
        rows = [passage(name, text) for name, text in self.texts.items()]
        for part in range(FILES):
            write_table(rows[part::FILES], PASSAGE, self.config.paths.corpus / "nq" / f"part-{part}.parquet")
            commit(self.store, "passage", rows[part::FILES], self.vectors[part::FILES])
        write_table(self.queries, QUERY, self.config.paths.queries / "train" / "nq.parquet")
        commit(self.store, "query", self.queries, self.asked)

    def by_words(self) -> list[tuple[str, list[tuple[str, float]]]]:
        index = LexicalIndex(list(self.texts), list(self.texts.values()))
        found = index.search([row["query"] for row in self.queries], [row["pool_ids"] for row in self.queries], 12)
        return list(zip((row["query_id"] for row in self.queries), found, strict=True))

    def scores(self) -> list[dict[str, float]]:
        exact = (self.asked.astype(np.float64) @ self.vectors.astype(np.float64).T).astype(np.float32)
        return [dict(zip(self.texts, row, strict=True)) for row in exact.tolist()]

    def by_vectors(self) -> list[tuple[str, list[tuple[str, float]]]]:
        pools = [row["pool_ids"] or list(self.texts) for row in self.queries]
        found = [
            best([(name, of_all[name]) for name in pool], 12) for pool, of_all in zip(pools, self.scores(), strict=True)
        ]
        return list(zip((row["query_id"] for row in self.queries), found, strict=True))


@pytest.fixture(scope="module")
def run(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    ray.init(address=cluster.address, log_to_driver=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(task_tree, "FAN_IN", 2)
        for module in (word_rankings, vector_rankings):
            patch.setattr(module, "PASS_ROWS", 16)
        patch.setattr(passages, "PART_FILES", 1)
        patch.setattr(vector_rankings, "SHARE_ROWS", 60)
        patch.setattr(candidate_groups, "PART_ROWS", 15)
        yield Run(tmp_path_factory.mktemp("run"))
    ray.shutdown()


def ranked(run: Run) -> tuple[RankingFiles, RankingFiles, int]:
    """Rankings by words and by vectors, and the rows of progress that were told."""
    told: list[int] = []
    with progress("rank", 2 * QUERIES, console(), told.append) as counter:
        words = word_rankings.rank_by_words(run.config.paths, run.config.words, SEARCH, counter)
        vectors = vector_rankings.rank_by_vectors(run.config, run.store, SEARCH, counter, words)
    return words, vectors, told[-1]


def test_rankings_of_tasks_are_those_of_one_process_and_a_second_run_ranks_what_is_missing(run: Run) -> None:
    words, vectors, told = ranked(run)
    assert told == 2 * QUERIES
    everything = QueryRows(words.queries, 0, QUERIES)
    assert list(words.named(everything)) == run.by_words()
    assert list(vectors.named(everything)) == run.by_vectors()
    files = sorted((run.config.paths.rankings / "train" / "nq").glob("*/*.parquet"))
    assert [path.name for path in files] == 2 * [f"{first:010d}.parquet" for first in (0, 16, 32)]
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}
    lost = [files[1], files[5]]
    for path in lost:
        path.unlink()
    assert ranked(run)[2] == 2 * QUERIES
    for path, (content, written) in before.items():
        assert path.read_bytes() == content
        assert (path.stat().st_mtime_ns != written) == (path in lost)


def test_groups_of_tasks_are_those_of_one_process(run: Run) -> None:
    words, vectors, _ = ranked(run)
    settings = MineConfig(group_size=4, window=(1, 11))
    with progress("group", QUERIES, console()) as counter:
        counts = candidate_groups.write_groups(run.config.paths, settings, "nq", words, vectors, counter)
    expected = []
    for row, (_, lexical), (_, dense), scores in zip(
        run.queries, run.by_words(), run.by_vectors(), run.scores(), strict=True
    ):
        expected.append(make_group(row, {"lexical": lexical, "dense": dense}, run.texts, settings, scores)[0])
    path = run.config.paths.work / "candidates" / "nq.parquet"
    assert read_tables([path], GROUP).to_pylist() == expected
    assert counts["groups"] == QUERIES
    assert counts["candidates"] == sum(len(group["candidate_ids"]) for group in expected)
    assert [path.name for path in run.config.paths.rankings.iterdir()] == ["train"] or not any(
        (run.config.paths.rankings / "groups").iterdir()
    )
    assert pq.ParquetFile(path).metadata.num_rows == QUERIES


def test_rankings_of_other_settings_are_removed(run: Run) -> None:
    words, vectors, _ = ranked(run)
    deeper = ranking_files.ranking_files(run.config.paths, Search("train", "nq", 13), "words", 16, None)
    assert deeper.folder != words.folder and len(deeper.missing()) == 3
    ranking_files.remove_stale(run.config.paths, "train", [words])
    assert words.folder.is_dir() and not vectors.folder.exists()
