"""Divides an LLM over several GPUs: of each layer every GPU holds and computes an equal part (tensor parallelism).

Each GPU has a process. After every half layer the processes add up what they have computed, so all of them must make
the same calls at the same time. The process of the caller is rank 0, and hands each call on to its followers.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from embedder.errors import DeviceError, EmbedderError
from embedder.models.device import CONTEXT_BYTES, prepare_cuda

Result = TypeVar("Result")

LONGEST_WAIT = timedelta(minutes=10)
"""How long a process waits for another, which may be compiling or reading weights, until it ends with an error."""


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


class Followers:
    """The processes of the other GPUs, as rank 0 sees them.

    `begin` makes a worker in every process, and `call` calls a method of it in every process. They end with rank 0.
    """

    def __init__(self, size: int, load: Callable[[Rank], Any]) -> None:
        """`load` gives the LLM of a rank; it is called in each follower, and rank 0 does the same by itself."""
        self.rank = Rank(0, size, Path(tempfile.mkdtemp(prefix="embedder-ranks-")) / "meeting")
        self._pipes: list[Connection] = []
        self._workers: list[Any] = []
        # Spawned, because CUDA cannot be used in a fork of a process that uses it.
        context = multiprocessing.get_context("spawn")
        for number in range(1, size):
            ours, theirs = context.Pipe()
            rank = replace(self.rank, number=number)
            context.Process(target=_follow, args=(rank, load, theirs), daemon=True).start()
            # Or else the pipe would stay open after the end of the follower, whose answer would be awaited for ever.
            theirs.close()
            self._pipes.append(ours)
        # Before rank 0 waits for them to join, because of one that could not start that would take LONGEST_WAIT.
        self._refuse_failures()

    def begin(self, make: Callable[[Any], Result], lm: Any) -> tuple[int, Result]:  # noqa: ANN401
        """Make a worker of its LLM in every process; returns the worker's number, and that of rank 0."""
        worker = self._together(lambda: make(lm), ("begin", make))
        self._workers.append(worker)
        return len(self._workers) - 1, worker

    def call(self, number: int, method: str, *args: Any) -> Any:  # noqa: ANN401
        """What a method of the worker returns in rank 0, after every process has called it."""
        return self._together(lambda: getattr(self._workers[number], method)(*args), ("call", number, method, args))

    def end(self) -> None:
        """Let the followers end, so that this process may lead others."""
        for pipe in self._pipes:
            pipe.close()
        self._pipes = []
        dist.destroy_process_group()

    def _together(self, own: Callable[[], Result], message: tuple[Any, ...]) -> Result:
        for number, pipe in enumerate(self._pipes, start=1):
            try:
                pipe.send(message)
            except OSError as error:
                raise self._failure(number, "its process has ended") from error
        try:
            result = own()
        except Exception:
            # What fails here fails in all of them, memory included; their answers are taken, or they would be
            # mistaken for those to the next call.
            self._answers()
            raise
        self._refuse_failures()
        return result

    def _answers(self) -> list[str | None]:
        """Why a follower failed, or None, for each of them."""
        answers: list[str | None] = []
        for pipe in self._pipes:
            try:
                answers.append(pipe.recv())
            except (EOFError, OSError):
                answers.append("its process has ended")
        return answers

    def _refuse_failures(self) -> None:
        for number, reason in enumerate(self._answers(), start=1):
            if reason is not None:
                raise self._failure(number, reason)

    def _failure(self, number: int, reason: str) -> DeviceError:
        return DeviceError(
            f"GPU {number} of the {self.rank.size} that share the LLM failed ({reason}); its log says more, and a new "
            "start goes on where this one ended"
        )


def _follow(rank: Rank, load: Callable[[Rank], Any], pipe: Connection) -> None:
    """Do what rank 0 does until it ends."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    pipe.send(None)
    lm, workers = load(rank), []
    while True:
        try:
            step, *given = pipe.recv()
        except EOFError:
            return
        try:
            if step == "begin":
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


def _end_with_parent() -> None:
    """End this process with that of rank 0, however that ends: Ray kills it without a word."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    # At once, because the main thread may be waiting for rank 0 inside a library.
    os._exit(0)


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
