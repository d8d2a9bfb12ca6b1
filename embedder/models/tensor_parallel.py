"""Divides an LLM over several GPUs: of each layer every GPU holds and computes an equal part (tensor parallelism).

Each GPU has a process. After every half layer the processes add up what they have computed, so all of them must make
the same calls at the same time. The process of the caller is rank 0, and hands each call on to its followers.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
import tempfile
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from embedder.errors import DeviceError, EmbedderError
from embedder.models.device import CONTEXT_BYTES, prepare_cuda

LOG = logging.getLogger(__name__)

Result = TypeVar("Result")

LONGEST_WAIT = timedelta(minutes=10)
"""How long a process waits for another, which may be compiling or reading weights, until it ends with an error."""
PATIENCE_S = 120.0
"""Seconds that rank 0 has to notice the failure of a follower; where it has not, it hangs in a library and is ended."""
ENDED = "its process has ended"


@dataclass(frozen=True)
class Rank:
    """One of the processes that share an LLM."""

    number: int
    size: int
    """Number of processes."""
    meeting: Path
    """A file by which they find each other."""

    def device(self, kind: str) -> torch.device:
        """The device of this process, where the devices of all are of one kind."""
        return torch.device(kind, self.number) if kind == "cuda" else torch.device(kind)

    def join(self, kind: str) -> None:
        """Meet the other processes."""
        device = self.device(kind)
        if kind == "cuda":
            torch.cuda.set_device(device)
            prepare_cuda(1)
        os.environ["LOCAL_RANK"] = str(self.number)  # transformers loads the weights to the GPU of this number
        dist.init_process_group(
            "nccl" if kind == "cuda" else "gloo",
            init_method=self.meeting.as_uri(),
            rank=self.number,
            world_size=self.size,
            timeout=LONGEST_WAIT,
            device_id=device if kind == "cuda" else None,
        )


@dataclass(frozen=True)
class _Answer:
    """The answer of a follower to a call."""

    failure: str | None
    taken: threading.Event = field(default_factory=threading.Event)
    """Set when rank 0 has read it."""


class Followers:
    """The processes of the other GPUs, as rank 0 sees them.

    `load` gives each process its LLM, `begin` makes a worker in every process, and `call` calls a method of it in every
    process. They end with rank 0. A failure that rank 0 cannot notice, because it waits for a dead process inside NCCL,
    ends rank 0 too, with a line in its log.
    """

    def __init__(self, size: int) -> None:
        folder = Path(tempfile.mkdtemp(prefix="embedder-ranks-"))
        self.rank = Rank(0, size, folder / "meeting")
        # At the end of this process; where it is killed, by a follower.
        self._remove_meeting = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self._pipes: list[Connection] = []
        self._answered: list[SimpleQueue[_Answer]] = []
        self._workers: list[Any] = []
        self._over = False
        # Spawned, because CUDA cannot be used in a fork of a process that uses it.
        context = multiprocessing.get_context("spawn")
        self._processes: list[BaseProcess] = []
        for number in range(1, size):
            ours, theirs = context.Pipe()
            rank = replace(self.rank, number=number)
            process = context.Process(target=_follow, args=(rank, theirs), daemon=True)
            process.start()
            # Or else the pipe would stay open after the end of the follower, whose answer would be awaited for ever.
            theirs.close()
            self._processes.append(process)
            self._pipes.append(ours)
            self._answered.append(SimpleQueue())
            threading.Thread(target=self._listen, args=(number,), daemon=True).start()
        # Before rank 0 waits for them to join, because of one that could not start that would take PATIENCE_S.
        self._refuse_failures()

    def load(self, load: Callable[[Rank], Result]) -> Result:
        """The LLM of rank 0, after every process has loaded its own; if one fails, none is left."""
        try:
            self._send(("load", load))
            lm = load(self.rank)
            self._refuse_failures()
        except Exception as error:
            ended = [number for number, process in enumerate(self._processes, start=1) if not process.is_alive()]
            # At once, because the others may wait for what this one will not do.
            self.end()
            if ended:
                raise self._failure(ended[0], ENDED) from error
            raise
        return lm

    def begin(self, make: Callable[[Any], Result], lm: Any) -> tuple[int, Result]:  # noqa: ANN401
        """Make a worker of its LLM in every process; returns the worker's number, and that of rank 0."""
        worker = self._together(lambda: make(lm), ("begin", make))
        self._workers.append(worker)
        return len(self._workers) - 1, worker

    def call(self, number: int, method: str, *args: Any) -> Any:  # noqa: ANN401
        """What a method of the worker returns in rank 0, after every process has called it."""
        return self._together(lambda: getattr(self._workers[number], method)(*args), ("call", number, method, args))

    def end(self) -> None:
        """End the followers, which may be waiting for each other."""
        self._over = True
        for process in self._processes:
            process.terminate()
            process.join()
        self._remove_meeting()

    def _together(self, own: Callable[[], Result], message: tuple[Any, ...]) -> Result:
        self._send(message)
        try:
            result = own()
        except Exception as error:
            # What fails here fails in all of them, memory included; their answers are taken, or they would be
            # mistaken for those to the next call.
            answers = self._answers()
            if ENDED in answers:
                raise self._failure(answers.index(ENDED) + 1, ENDED) from error
            raise
        self._refuse_failures()
        return result

    def _send(self, message: tuple[Any, ...]) -> None:
        for number, pipe in enumerate(self._pipes, start=1):
            try:
                pipe.send(message)
            except OSError as error:
                raise self._failure(number, ENDED) from error

    def _answers(self) -> list[str | None]:
        """Why a follower failed, or None, for each of them."""
        answers = [answered.get() for answered in self._answered]
        for answer in answers:
            answer.taken.set()
        return [answer.failure for answer in answers]

    def _refuse_failures(self) -> None:
        for number, reason in enumerate(self._answers(), start=1):
            if reason is not None:
                raise self._failure(number, reason)

    def _failure(self, number: int, reason: str) -> DeviceError:
        return DeviceError(
            f"GPU {number} of the {self.rank.size} that share the LLM failed ({reason}); its log says more, and a new "
            "start goes on where this one ended"
        )

    def _listen(self, number: int) -> None:
        """Take the answers of a follower, and end this process where it does not come to read that one failed."""
        failure: str | None = None
        while failure != ENDED:
            try:
                failure = self._pipes[number - 1].recv()
            except (EOFError, OSError):
                failure = ENDED
            answer = _Answer(failure)
            self._answered[number - 1].put(answer)
            if failure is not None and not answer.taken.wait(PATIENCE_S) and not self._over:
                LOG.error("%s", self._failure(number, failure))
                # At once, because the main thread waits for that process inside a library, where nothing is raised.
                _end_at_once(self.rank.meeting.parent, 1)


def _follow(rank: Rank, pipe: Connection) -> None:
    """Do what rank 0 does until it ends."""
    threading.Thread(target=_end_with_parent, args=(rank.meeting.parent,), daemon=True).start()
    pipe.send(None)
    lm: Any = None
    workers: list[Any] = []
    while True:
        try:
            step, *given = pipe.recv()
        except EOFError:
            # Rank 0 may have ended without a word, and this thread may be the first to see it.
            shutil.rmtree(rank.meeting.parent, ignore_errors=True)
            return
        try:
            if step == "load":
                lm = given[0](rank)
            elif step == "begin":
                workers.append(given[0](lm))
            else:
                number, method, args = given
                getattr(workers[number], method)(*args)
        # What rank 0 may survive, because it fails there in the same way; after anything else this process ends.
        except (RuntimeError, ValueError, EmbedderError) as error:
            failure: str | None = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        else:
            failure = None
        pipe.send(failure)


def _end_with_parent(meeting: Path) -> None:
    """End this process with that of rank 0, however that ends: Ray kills it without a word."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    # At once, because the main thread may be waiting for rank 0 inside a library.
    _end_at_once(meeting, 0)


def _end_at_once(meeting: Path, status: int) -> NoReturn:
    shutil.rmtree(meeting, ignore_errors=True)
    os._exit(status)


def use_own_parts(model: nn.Module) -> None:
    """Make a divided model one of plain tensors, which holds the parts of this process.

    transformers leaves distributed tensors, which kernels and compilers know less well. The layers themselves add up
    and share results, so they need none.
    """
    for module in model.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            if isinstance(weight, DTensor):
                module.register_parameter(name, nn.Parameter(weight.to_local(), requires_grad=False))


def share_logits(output_layer: nn.Module) -> None:
    """Give every process the logits of rank 0, so that all draw the same token even if a last digit differed."""
    output_layer.register_forward_hook(_from_rank_0)


def _from_rank_0(module: nn.Module, given: Any, logits: Tensor) -> Tensor:  # noqa: ANN401
    shared = logits.contiguous()
    dist.broadcast(shared, src=0)
    return shared


def share_memory_limit(device: torch.device) -> None:
    """Give every process as much memory as the fullest GPU has left.

    All then run out of memory at the same operation and halve the same batch; one alone would leave the others waiting.
    """
    if device.type != "cuda":
        return
    free, whole = torch.cuda.mem_get_info(device)
    usable = torch.tensor([free + torch.cuda.memory_reserved(device)], device=device)
    dist.all_reduce(usable, dist.ReduceOp.MIN)
    torch.cuda.set_per_process_memory_fraction((int(usable) - CONTEXT_BYTES) / whole, device)
