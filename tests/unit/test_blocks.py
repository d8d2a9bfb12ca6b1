"""Blocks in actors: a block is committed once, its cost adds up, and every block is given out."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
import torch

from embedder.data.ledger import Ledger
from embedder.errors import DeviceError
from embedder.models.memory import BatchLimit
from ray_jobs.cluster.blocks import (
    COST,
    PARTS_AN_ACTOR,
    Block,
    BlockActor,
    BlockCost,
    PoolActor,
    cut_blocks,
    seconds_left,
)


class Doubling(BlockActor):
    """Doubles numbers; every number is a pair of two tokens."""

    peak_flops = 10.0

    def __init__(self, ledger: Ledger) -> None:
        self.ledger, self.computed_numbers = ledger, 0

    def row_ids(self, block: Block) -> list[str]:
        return [str(number) for number in block["numbers"]]

    def compute(self, block: Block) -> list[dict[str, Any]]:
        self.computed_numbers += len(block["numbers"])
        return [{"row_id": str(number), "double": 2 * number} for number in block["numbers"]]

    def computed(self) -> BlockCost:
        return BlockCost(pairs=self.computed_numbers, tokens=2 * self.computed_numbers, flops=3.0)


@pytest.fixture
def actor(tmp_path):
    schema = pa.schema([("row_id", pa.string()), ("double", pa.int64())])
    return Doubling(Ledger(tmp_path, schema, "row_id"))


def test_block_actor_commits_a_block_and_tells_its_cost(actor):
    costs = actor(pa.table({"numbers": [[1, 2, 3]], "rows": [2]}))
    assert costs.schema == COST
    (cost,) = (BlockCost(**row) for row in costs.drop_columns(["failure"]).to_pylist())
    assert (cost.rows, cost.pairs, cost.tokens, cost.flops) == (2, 3, 6, 0.0)
    assert cost.seconds > 0 and cost.capacity == pytest.approx(10 * cost.seconds)
    assert actor.ledger.read()["double"].to_pylist() == [2, 4, 6]


def test_block_actor_does_not_compute_a_committed_block_again(actor):
    block = pa.table({"numbers": [[1, 2, 3]], "rows": [3]})
    actor(block)
    (cost,) = (BlockCost(**row) for row in actor(block).drop_columns(["failure"]).to_pylist())
    assert cost == BlockCost(rows=3) and actor.computed_numbers == 3


class Unmade(Doubling):
    """Finds no GPU."""

    def __init__(self) -> None:
        raise DeviceError("1 GPUs were asked for, but this process cannot use one")


def test_pool_actor_hands_on_why_it_could_not_be_made():
    told = PoolActor(Unmade, ())(pa.table({"numbers": [[1], [2]], "rows": [1, 1]}))
    assert told["failure"].to_pylist() == ["1 GPUs were asked for, but this process cannot use one"] * 2
    assert told["limits"].to_pylist() == [[], []]


class Large(Doubling):
    """Has no room."""

    def __init__(self, error: Exception) -> None:
        raise error


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory\nmore")])
def test_pool_actor_that_does_not_fit_into_memory_is_told_and_not_started_again(error):
    told = PoolActor(Large, (error,))(pa.table({"numbers": [[1]], "rows": [1]}))
    assert told["failure"].to_pylist()[0].startswith("Large: memory is short (")
    with pytest.raises(RuntimeError, match="pretended"):
        PoolActor(Large, (RuntimeError("pretended"),))


def test_block_actor_hands_on_every_error_that_is_meant_for_the_user(actor, monkeypatch):
    def fail(block):
        raise DeviceError("GPU 1 of the 2 that share the LLM failed")

    monkeypatch.setattr(actor, "compute", fail)
    told = actor(pa.table({"numbers": [[1]], "rows": [1]}))
    assert told["failure"].to_pylist() == ["GPU 1 of the 2 that share the LLM failed"]


def test_pool_actor_tells_the_costs_of_its_actor_and_the_batches_that_it_cut(tmp_path):
    class Short(Doubling):
        def limits(self) -> list[BatchLimit]:
            limits = [BatchLimit("doubling", "numbers"), BatchLimit("halving")]
            limits[0].lower(8)
            return limits

    schema = pa.schema([("row_id", pa.string()), ("double", pa.int64())])
    told = PoolActor(Short, (Ledger(tmp_path, schema, "row_id"),))(pa.table({"numbers": [[1, 2]], "rows": [2]}))
    assert told["failure"].to_pylist() == [None] and told["rows"].to_pylist() == [2]
    assert told["limits"].to_pylist() == [[{"work": "doubling", "unit": "numbers", "most": 4}]]
    assert told.drop_columns(["limits"]).schema == COST


def test_block_costs_add_up():
    total = BlockCost(1, 2, 3, 4.0, 5.0, 6.0, 7.0) + BlockCost(10, 20, 30, 40.0, 50.0, 60.0, 70.0)
    assert total == BlockCost(11, 22, 33, 44.0, 55.0, 66.0, 77.0)


def test_block_cost_says_what_was_expected_of_the_block(actor):
    (cost,) = actor(pa.table({"numbers": [[1, 2]], "rows": [2], "tokens": [9.5]})).to_pylist()
    (by_rows,) = actor(pa.table({"numbers": [[3, 4]], "rows": [2]})).to_pylist()
    assert (cost["expected"], by_rows["expected"]) == (9.5, 2.0)


def test_seconds_left_are_those_of_the_actors_and_not_of_the_clock():
    """Two of eight parts took 10 busy seconds: the other six take 30, which three actors share."""
    assert seconds_left(BlockCost(seconds=10.0), 0.25, 3) == pytest.approx(10.0)
    assert seconds_left(BlockCost(), 0.0, 3) is None


@pytest.mark.parametrize(("count", "actors"), [(0, 1), (1, 3), (1000, 2), (PARTS_AN_ACTOR * 3, 3), (64_007, 2)])
def test_cut_blocks_gives_out_every_block_once_in_a_bounded_number_of_parts(count, actors):
    parts = cut_blocks(pa.table({"rows": list(range(count))}), actors)
    assert [row for part in parts for row in part["rows"].to_pylist()] == list(range(count))
    assert len(parts) <= 2 * PARTS_AN_ACTOR * actors


@pytest.mark.parametrize("sizes", [[1], [20], [30, 700], [4500, 3]])
@pytest.mark.parametrize("actors", [1, 2, 8])
def test_cut_blocks_of_several_tables_gives_every_actor_several_parts(sizes, actors):
    parts = [part for size in sizes for part in cut_blocks(pa.table({"rows": [1] * size}), actors, sum(sizes))]
    assert sum(part.num_rows for part in parts) == sum(sizes)
    assert len(parts) >= min(sum(sizes), PARTS_AN_ACTOR * actors)
