"""How texts to encode are shared out among actors."""

from __future__ import annotations

import pyarrow as pa
import pytest

from ray_jobs.vectors import BLOCK_ROWS, CHUNK_ROWS, CHUNKS_AN_ACTOR, shared_out


@pytest.mark.parametrize("sizes", [[1], [BLOCK_ROWS], [5_000], [300, 7_000], [45_000, 3]])
@pytest.mark.parametrize("actors", [1, 2, 64])
def test_no_row_is_lost_and_every_actor_has_several_chunks(sizes, actors):
    first, tables = 0, []
    for size in sizes:
        tables.append(pa.table({"row": range(first, first + size)}))
        first += size
    chunks = shared_out(tables, actors)
    assert pa.concat_tables(chunks)["row"].to_pylist() == list(range(first))
    assert max(chunk.num_rows for chunk in chunks) <= CHUNK_ROWS
    if first >= CHUNKS_AN_ACTOR * actors * BLOCK_ROWS:
        assert len(chunks) >= CHUNKS_AN_ACTOR * actors
        assert sum(chunk.num_rows % BLOCK_ROWS > 0 for chunk in chunks) <= len(sizes)
