"""Short memory: labelling, encoding and training go on with smaller batches, and remember which size fitted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from benchmarks.gpu_bench import Bench, backend_of, random_bert, random_llama
from benchmarks.gpu_inputs import UNIT_GROUPS, prompts_of, read_passages
from benchmarks.gpu_labelling import PROFILED_LAYERS
from benchmarks.gpu_training import job_of
from embedder.models.encoder import encode_prompted, load_encoder
from embedder.training.loop import Trainer

SPARE = 1_200_000_000
"""Bytes of the card that are left beside the weights."""


def memory(bench: Bench) -> None:
    """Each kind of work with room enough, with little memory, and with little once more."""
    lm = random_llama(bench, "7b", num_hidden_layers=bench.size(PROFILED_LAYERS, 2))
    backend = backend_of(bench, lm)
    unit = bench.units(lm.model.config.vocab_size, bench.size(UNIT_GROUPS, 1))[0]
    in_short_memory(bench, "labelling", partial(backend.score, prompts_of(unit)))
    del backend, lm
    bench.forget()
    config = random_bert(bench).model_copy(update={"batch_tokens": bench.size(524_288, 4096)})
    encoder = load_encoder(config, bench.device)
    texts = read_passages(bench.inputs, bench.size(8192, 16))
    in_short_memory(bench, "encoding", partial(encode_prompted, encoder, texts))
    del encoder
    bench.forget()
    trainer = Trainer(job_of(bench, "short memory", {"steps": 4}))
    in_short_memory(bench, "training", trainer.step)
    if bench.figures.wrong:
        raise SystemExit(f"does not go on in short memory: {', '.join(bench.figures.wrong)}")


def in_short_memory(bench: Bench, name: str, work: Callable[[], object]) -> None:
    """Seconds of some work with room, as memory becomes short, and again."""
    # A hook would be compiled into the layers of the LLM, and on a GPU nobody asks for the number.
    with nullcontext([0]) if bench.device.type == "cuda" else counted_tokens() as counts:
        work()
    roomy = bench.seconds(work)
    with short_memory(bench, max(counts) * 2 // 3):
        try:
            times = [bench.seconds(work) for _ in range(2)]
        except torch.OutOfMemoryError as error:
            bench.figures.check(name, is_right=False, told=str(error).partition("\n")[0])
            return
    bench.figures.row(
        f"{name}: {roomy:.2f} s with room, {times[0]:.2f} s as memory becomes short, {times[1]:.2f} s after that",
        **{f"{name}_s": [roomy, *times]},
    )


@contextmanager
def short_memory(bench: Bench, most_tokens: int) -> Iterator[None]:
    """Fill the card but for SPARE bytes; on a CPU, where memory is not short, refuse batches of more tokens."""
    if bench.device.type == "cuda":
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info(bench.device)
        held = torch.empty(max(0, free - SPARE), dtype=torch.uint8, device=bench.device)
        try:
            yield
        finally:
            del held
            torch.cuda.empty_cache()
        return

    def refuse(tokens: int) -> None:
        if tokens > most_tokens:
            raise torch.OutOfMemoryError(f"a batch of {tokens} tokens does not fit")

    with watched_tokens(refuse):
        yield


@contextmanager
def counted_tokens() -> Iterator[list[int]]:
    """The tokens of every batch that a network reads."""
    counts: list[int] = []
    with watched_tokens(counts.append):
        yield counts


@contextmanager
def watched_tokens(seen: Callable[[int], object]) -> Iterator[None]:
    """Call `seen` with the tokens of each batch before it is read: those that are looked up in a table."""

    def look(module: nn.Module, given: tuple[object, ...]) -> None:
        if isinstance(module, nn.Embedding) and given and isinstance(given[0], torch.Tensor):
            seen(given[0].numel())

    hook = register_module_forward_pre_hook(look)
    try:
        yield
    finally:
        hook.remove()
