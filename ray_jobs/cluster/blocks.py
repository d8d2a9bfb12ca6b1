"""Blocks of work in a pool of actors, each of which loads a model once and commits one block after another.

A block stands in its ledger as a whole or not at all, and a committed block is not computed again. Only what a killed
actor had in hand is lost, and is given out once more.
"""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, astuple, dataclass
from operator import add, sub
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray.data import ActorPoolStrategy

from embedder.console import console
from embedder.data.ledger import Ledger
from embedder.errors import EmbedderError
from embedder.run.gpu_shares import gpu_cpus
from embedder.storage.holding import Permit, own_permit
from ray_jobs.cluster.machines import machines
from ray_jobs.cluster.metrics import track_progress

if TYPE_CHECKING:
    from embedder.models.memory import BatchLimit

logger = logging.getLogger(__name__)

Block = dict[str, Any]
"""What an actor is given; `rows` says how many rows ahead of it the driver counts, and `tokens`, where there is such a
column, how much work it expects of them."""
PARTS_AN_ACTOR = 64
"""Into how many parts the blocks of an actor are cut: enough to share them evenly, few enough to hold in memory."""


@dataclass(frozen=True)
class BlockCost:
    """What a block cost, or many together; one that was committed before costs nothing."""

    rows: int = 0
    pairs: int = 0
    """(query, candidate) pairs that were scored."""
    tokens: int = 0
    """Tokens through the layers of the model."""
    flops: float = 0.0
    seconds: float = 0.0
    """Busy seconds of the actors."""
    capacity: float = 0.0
    """Operations that their devices could have done in these seconds; 0: not known."""
    expected: float = 0.0
    """Work that the driver expected of what was computed: the `tokens` of its blocks, or else their rows."""
    money: float = 0.0
    """What a server asks for it."""

    def __add__(self, other: BlockCost) -> BlockCost:
        return BlockCost(*map(add, astuple(self), astuple(other)))

    def __sub__(self, other: BlockCost) -> BlockCost:
        return BlockCost(*map(sub, astuple(self), astuple(other)))


COST = pa.Table.from_pylist([asdict(BlockCost())]).schema.append(pa.field("failure", pa.string()))
"""The fields of a BlockCost, as Ray Data hands them from actor to driver, and why its block was not made if it was not.
"""


LIMITS = pa.list_(pa.struct([("work", pa.string()), ("unit", pa.string()), ("most", pa.int64())]))
"""The sizes to which an actor cut its batches, because memory was short."""


class BlockActor(ABC):
    """Makes and commits blocks; the constructor of a subclass loads the model.

    Subclasses stand in modules of their own, apart from the commands: what `python -m` runs is called `__main__`, and
    Ray would send a class of that module by value, with all it refers to.
    """

    peak_flops = 0.0
    """Operations a second of its device; 0: not known."""

    ledger: Ledger
    """Holds what it commits."""
    permit: Permit | None = None
    """Shown before each commit."""

    def ledger_of(self, block: Block) -> Ledger:
        """The ledger of a block, for actors with several."""
        return self.ledger

    @abstractmethod
    def row_ids(self, block: Block) -> list[str]:
        """The ids of the rows that `compute` returns, in the same order."""

    @abstractmethod
    def compute(self, block: Block) -> list[dict[str, Any]] | pa.Table:
        """The rows of the block, as its ledger holds them."""

    def limits(self) -> Sequence[BatchLimit]:
        """What it has learnt of the batches that memory has room for."""
        return ()

    def computed(self) -> BlockCost:
        """Pairs, tokens and operations of all blocks so far."""
        return BlockCost()

    def __call__(self, batch: pa.Table) -> pa.Table:
        return pa.Table.from_pylist([self._told(block) for block in batch.to_pylist()], COST)

    def _told(self, block: Block) -> dict[str, Any]:
        try:
            return asdict(self._commit(block))
        except EmbedderError as error:
            # As data, because of an exception Ray Data hands on the traceback alone, and the user needs the one line.
            return asdict(BlockCost()) | {"failure": str(error)}

    def _commit(self, block: Block) -> BlockCost:
        ledger = self.ledger_of(block)
        # Ray gives a block out again when its actor dies, which may happen after the commit.
        if ledger.holds(self.row_ids(block)):
            return BlockCost(block["rows"])
        began, before = time.perf_counter(), self.computed()
        rows = self.compute(block)
        if self.permit is not None:
            self.permit.check()
        ledger.commit(rows)
        seconds = time.perf_counter() - began
        expected = float(block["tokens"] if "tokens" in block else block["rows"])
        own = BlockCost(block["rows"], seconds=seconds, capacity=seconds * self.peak_flops, expected=expected)
        cost = own + self.computed() - before
        logger.info("%s committed a block", type(self).__name__, extra=asdict(cost))
        return cost


class PoolActor:
    """The Ray Data actor around a BlockActor, which hands on as data why that could not be made."""

    def __init__(self, actor: type[BlockActor], arguments: tuple[object, ...], permit: Permit | None = None) -> None:
        self.actor: BlockActor | None = None
        try:
            self.actor = actor(*arguments)
            self.actor.permit = permit
        except EmbedderError as error:
            # As data, as `_told` does. A GPU that cannot be used and a model that does not fit end the job with one
            # line; Ray would start the actor again and again.
            self.failure = str(error)
        except (RuntimeError, MemoryError) as error:
            # Here, because torch comes with it, which the driver does without.
            from embedder.models.memory import is_memory_error

            if not is_memory_error(error):
                raise
            reason = str(error).partition("\n")[0]
            self.failure = f"{actor.__name__}: memory is short ({reason}); take a smaller model, or fewer actors a GPU"

    def __call__(self, batch: pa.Table) -> pa.Table:
        if self.actor is None:
            failed = asdict(BlockCost()) | {"failure": self.failure}
            return _with_limits(pa.Table.from_pylist([failed] * batch.num_rows, COST), ())
        return _with_limits(self.actor(batch), self.actor.limits())


def _with_limits(costs: pa.Table, limits: Sequence[BatchLimit]) -> pa.Table:
    lowered = [
        {"work": limit.work, "unit": limit.unit, "most": limit.most} for limit in limits if limit.most is not None
    ]
    return costs.append_column("limits", pa.array([lowered] * costs.num_rows, LIMITS))


def actor_pool(
    num_actors: int,
    gpus_per_actor: float,
    cpus_per_actor: float = 1,
    min_actors: int | None = None,
    calls: int = 1,
) -> dict[str, Any]:
    """The `map_batches` arguments of a pool of model actors, which grows from `min_actors` while work waits.

    An actor with a GPU has as many CPUs as `gpu_cpus` says, if these are more. `calls`: blocks that an actor has in
    hand at once, each in a thread of its own, where its class allows that.
    """
    resources: dict[str, Any] = {"num_cpus": cpus_per_actor}
    if gpus_per_actor:
        beside = gpu_cpus(gpus_per_actor, machines())
        resources = {"num_cpus": max(cpus_per_actor, beside), "num_gpus": gpus_per_actor}
    several = {"max_concurrent_calls_per_actor": calls, "enable_true_multi_threading": True} if calls > 1 else {}
    strategy = ActorPoolStrategy(min_size=min_actors or num_actors, max_size=num_actors, **several)
    return {"compute": strategy, **resources}


def cut_blocks(blocks: pa.Table, num_actors: int, total: int | None = None) -> list[pa.Table]:
    """A table of blocks in parts, `PARTS_AN_ACTOR` an actor; `total` where it is one of several with so many blocks."""
    size = max(1, (blocks.num_rows if total is None else total) // (PARTS_AN_ACTOR * num_actors))
    return [blocks.slice(first, size) for first in range(0, blocks.num_rows, size)]


def seconds_left(spent: BlockCost, share: float, num_actors: int) -> float | None:
    """How long a pool needs for the rest, when a share of the work was done at that cost; None while nothing was."""
    # From the busy seconds of the actors and not from the clock, which also counts the loading of their models.
    return spent.seconds * (1 - share) / share / num_actors if share and spent.seconds else None


def run_blocks(
    parts: Iterable[pa.Table],
    actor: type[BlockActor],
    arguments: tuple[object, ...],
    pool: dict[str, Any],
    label: str,
    note: Callable[[BlockCost, float, float], str] = lambda cost, seconds, share: "",
) -> BlockCost:
    """Send blocks through a pool of actors, which commit them; the driver sees counts only.

    Args:
        parts: Tables of blocks, a row each, with a column `rows`. They wait in Ray's object store, which moves to the
            disk what does not fit; the driver holds one at a time.
        actor: Made with `arguments` in every process of the pool; Ray starts another one where one dies.
        pool: From `actor_pool`.
        label: Stands before the progress, which counts rows that are committed.
        note: What stands behind the counts, from the cost and the seconds so far, and the share of all work in them.

    Returns:
        The cost of all blocks together.

    Raises:
        EmbedderError: an actor could not be made, because its GPU cannot be used or its model not be loaded; or a block
            was not committed, because numbers of it are NaN or infinite, a GPU failed, a file could not be written, or
            the lease on the run is lost.
    """
    total, expected, references = 0, 0.0, []
    for part in parts:
        total += pc.sum(part["rows"]).as_py()
        expected += pc.sum(part["tokens" if "tokens" in part.column_names else "rows"]).as_py()
        references.append(ray.put(part))
    spent = BlockCost()
    if not references:
        return spent
    # A batch is one block, so that an actor that dies takes no other with it, and costs arrive as blocks are committed.
    costs = ray.data.from_arrow_refs(references).map_batches(
        PoolActor, fn_constructor_args=(actor, arguments, own_permit()), batch_size=1, batch_format="pyarrow", **pool
    )
    # A block in a thread of its own has its own busy seconds.
    threads = pool["compute"].max_size * (pool["compute"].max_concurrent_calls_per_actor or 1)
    began = time.monotonic()
    limits: dict[tuple[str, str], int] = {}
    with track_progress(label, total) as counter:
        for batch in costs.iter_batches(batch_size=None, batch_format="pyarrow"):
            for row in batch.to_pylist():
                failure = row.pop("failure")
                if failure is not None:
                    raise EmbedderError(failure)
                for limit in row.pop("limits"):
                    key = limit["work"], limit["unit"]
                    limits[key] = min(limit["most"], limits.get(key, limit["most"]))
                cost = BlockCost(**row)
                spent += cost
                share = spent.expected / expected if expected else 1.0
                told = note(spent, max(time.monotonic() - began, 1e-9), share)
                counter.advance(cost.rows, told, seconds_left(spent, share, threads))
    for (work, unit), most in sorted(limits.items()):
        console().print(f"{label}: memory was short, so batches of {work} were cut to {most:,} {unit}", markup=False)
    return spent
