"""Outputs of other queries as rivals: which are chosen, and that they are what the labels depend on."""

from __future__ import annotations

import pytest

from embedder.config.run import RunConfig
from embedder.data.records import QUERY, write_table
from embedder.labelling.corpus_outputs import POOL_OUTPUTS, choose_outputs, read_output_pools

POOL = [f"answer {number}" for number in range(20)]


def run_of(folder, encoder, **label) -> RunConfig:
    """A run with prepared training queries: 300 of qa with 290 distinct answers, and one of a task without a reward."""
    config = RunConfig(paths={"work": folder}, encoder=encoder, label=label)
    for task, count in (("qa", 300), ("tool", 1)):
        empty = {**dict.fromkeys(QUERY.names), "task": task, "dataset": f"of-{task}"}
        rows = [
            {**empty, "query_id": f"{i}", "query": f"q {i}", "answers": [f"a {i % 290}", "x"]} for i in range(count)
        ]
        write_table(
            [*rows, {**empty, "query_id": "none"}], QUERY, config.paths.queries / "train" / f"of-{task}.parquet"
        )
    return config


def test_output_pools_hold_distinct_answers_of_tasks_that_rank_outputs(tmp_path, tiny_encoder):
    pools = read_output_pools(run_of(tmp_path, tiny_encoder, corpus_outputs=3))
    assert set(pools) == {"of-qa"}
    assert len(set(pools["of-qa"])) == len(pools["of-qa"]) == POOL_OUTPUTS
    assert set(pools["of-qa"]) <= {f"a {i}" for i in range(290)}
    assert read_output_pools(run_of(tmp_path, tiny_encoder, corpus_outputs=3, seed=1)) != pools
    assert read_output_pools(run_of(tmp_path, tiny_encoder)) == {}


def test_choose_outputs_is_seeded_by_the_query_and_leaves_accepted_answers_out():
    chosen = choose_outputs(POOL, ["Answer 3."], 19, 0, "d", "q")
    assert sorted(chosen) == sorted(set(POOL) - {"answer 3"})
    assert choose_outputs(POOL[::-1], ["Answer 3."], 5, 0, "d", "q") == chosen[:5]
    others = [choose_outputs(POOL, [], 5, *asked) for asked in ((0, "d", "p"), (0, "e", "q"), (1, "d", "q"))]
    assert len({tuple(each) for each in [*others, chosen[:5]]}) == 4


@pytest.mark.parametrize(("pool", "count", "expected"), [([], 3, 0), (POOL, 0, 0), (POOL[:2], 3, 2)])
def test_choose_outputs_gives_as_many_as_there_are(pool, count, expected):
    assert len(choose_outputs(pool, ["x"], count, 0, "d", "q")) == expected
