"""What the parts of the GPU benchmark share: sizes, clocks, profiles, and models of true shape with random weights."""

from __future__ import annotations

import gc
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
from torch.profiler import ProfilerActivity
from transformers import AutoModel, AutoModelForCausalLM, BertConfig, LlamaConfig

from benchmarks.gpu_inputs import LONGEST_PREFIX, TOKENIZER, Unit, read_units
from embedder.config.run import CHUNKED, FLEX, SEQUENTIAL, EncoderConfig, LlmConfig, Scorer, TreeScorer
from embedder.labelling.backends import LlmBackend, choose_backend
from embedder.labelling.tree_backend import TreeBackend
from embedder.models.causal_lm import CausalLm
from embedder.models.device import matmul_rate
from embedder.storage.json_file import write_json

LLAMAS: dict[str, dict[str, int]] = {
    "7b": {"intermediate_size": 11008, "num_key_value_heads": 32, "vocab_size": 32000},
    "8b": {"intermediate_size": 14336, "num_key_value_heads": 8, "vocab_size": 128256},
}
"""Shapes of Llama 2 7B, whose heads have keys of their own, and of Llama 3 8B, four heads of which share theirs."""
WIDE = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32}
TOY = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 2048}
TOY_GROUPS = {"7b": 4, "8b": 2}
"""Heads of keys and values of the toys."""
LONGEST_OUTPUT = 64
KERNELS = {
    "attention": ("flash", "fmha", "attention", "triton_tem", "flex"),
    "products": ("gemm", "gemv", "cutlass", "cublas", "nvjet", "xmma", "aten::mm", "aten::addmm", "aten::bmm"),
    "copies": ("memcpy", "memset", "copy"),
}
"""What the name of a kernel holds, the first kind that fits; all others are norms, activations, sums and the like."""
OTHERS = "element-wise and sums"


class Figures:
    """What a part has found; in its file after every row, so that a part that is cut off keeps what it has."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.values: dict[str, Any] = {}
        self.wrong: list[str] = []
        """What was looked at and is not right."""

    def row(self, line: str, **values: Any) -> None:  # noqa: ANN401
        """Print a line of the part's table, and keep its figures."""
        print(f"  {line}", flush=True)
        self.values |= values
        write_json(self.values, self._file)

    def check(self, name: str, *, is_right: bool, told: str) -> None:
        """Print what was looked at; a part in which something is wrong fails at its end."""
        self.row(f"{name}: {told}{'' if is_right else '  WRONG'}")
        if not is_right:
            self.wrong.append(name)


@dataclass(frozen=True)
class Bench:
    """What a part works with."""

    inputs: Path
    """The folder of `benchmarks.gpu_inputs`."""
    scratch: Path
    """A folder of the part's own."""
    figures: Figures
    device: torch.device
    toy: bool
    """Sizes for a CPU; what is then measured says nothing, and shows that all of it runs."""
    ends: float = math.inf
    """When the part has to be done, by `time.monotonic`."""

    def size(self, real: int, toy: int) -> int:
        """The one or the other."""
        return toy if self.toy else real

    def units(self, vocabulary: int, groups: int) -> list[Unit]:
        """The units, of so many groups at most."""
        return read_units(self.inputs, vocabulary, groups, self.size(LONGEST_PREFIX, 192))

    def seconds_left(self) -> float | None:
        """Until the part has to be done; null: it has as long as it takes."""
        return None if math.isinf(self.ends) else max(1.0, self.ends - time.monotonic())

    @property
    def batch_tokens(self) -> int:
        """Tokens of a batch of the LLM, and of the encoder that is trained."""
        return self.size(32_768, 2048)

    @cached_property
    def peak_flops(self) -> float:
        """Operations a second of the fastest product in bfloat16, of which shares are taken."""
        return matmul_rate(self.device, torch.bfloat16)

    def sync(self) -> None:
        """Wait for the device, which has only been told what to do when a call returns."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, function: Callable[[], object], rounds: int = 1) -> float:
        """Median of some rounds, the device's work done."""
        found = []
        for _ in range(rounds):
            self.sync()
            began = time.perf_counter()
            function()
            self.sync()
            found.append(time.perf_counter() - began)
        return median(found)

    def forget(self) -> None:
        """Give freed memory of the device back, and forget compiled code."""
        torch.compiler.reset()
        # A trainer is in a cycle with the threads and hooks that it made.
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def gigabytes(self) -> float:
        """Greatest memory of the device since the last call."""
        if self.device.type != "cuda":
            return 0.0
        peak = torch.cuda.max_memory_allocated(self.device) / 1e9
        torch.cuda.reset_peak_memory_stats(self.device)
        return float(peak)


def format_name(dtype: torch.dtype) -> str:
    """The name of a number format, such as "bfloat16"."""
    return str(dtype).removeprefix("torch.")


def profiled(bench: Bench, name: str, function: Callable[[], object]) -> None:
    """A row on where the device's time goes: its kernels, the share of the time in which it works, and on what."""
    on_gpu = bench.device.type == "cuda"
    activity = ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU
    with torch.profiler.profile(activities=[activity]) as profile:
        took = bench.seconds(function)
    spent: dict[str, float] = dict.fromkeys((*KERNELS, OTHERS), 0.0)
    count = 0
    for event in profile.key_averages():
        if event.device_type.name == activity.name:
            microseconds = event.self_device_time_total if on_gpu else event.self_cpu_time_total
            spent[kernel_kind(event.key)] += microseconds / 1e6
            count += event.count
    busy = sum(spent.values())
    shares = {part: seconds / busy if busy else 0.0 for part, seconds in spent.items()}
    told = ", ".join(f"{part} {share:.0%}" for part, share in shares.items())
    key = name.replace(" ", "_").replace(",", "")
    bench.figures.row(
        f"profile of {name}: {count:,} kernels, the device works {busy / took:.0%} of {took:.3f} s; of that {told}",
        **{f"profile_{key}": {"kernels": count, "busy": busy / took, **shares}},
    )


def kernel_kind(name: str) -> str:
    """What a kernel does, by its name."""
    lowered = name.lower()
    return next((kind for kind, marks in KERNELS.items() if any(mark in lowered for mark in marks)), OTHERS)


def random_llama(bench: Bench, name: str, dtype: torch.dtype = torch.bfloat16, **changed: int) -> CausalLm:
    """A Llama of a true shape; it has no tokenizer, and scoring and sampling need none."""
    shape = {**WIDE, **LLAMAS[name]}
    if bench.toy:
        shape = {**TOY, "num_key_value_heads": TOY_GROUPS[name]}
    config = LlamaConfig(**{**shape, **changed}, max_position_embeddings=2 * LONGEST_PREFIX)
    torch.manual_seed(0)
    with torch.device(bench.device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    return CausalLm(model.eval(), None)


def backend_of(bench: Bench, lm: CausalLm, scorer: Literal["auto"] | TreeScorer = "auto") -> LlmBackend:
    """What the labeller scores and samples with, by its own choice or by name."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16" if lm.model.dtype == torch.bfloat16 else "float32"
    config = LlmConfig(
        model="random weights",
        dtype=dtype,
        max_prefix_tokens=LONGEST_PREFIX,
        batch_tokens=bench.batch_tokens,
        scorer=scorer,
    )
    return choose_backend(lm, config, LONGEST_OUTPUT)


def scorer_of(backend: LlmBackend) -> Scorer:
    """How a backend scores."""
    return backend.scorer if isinstance(backend, TreeBackend) else SEQUENTIAL


def other_scorer(bench: Bench, chosen: LlmBackend) -> TreeScorer | None:
    """The way to read trees that was not chosen: the fall-back of a GPU without a compiler; flex in a toy."""
    if scorer_of(chosen) == FLEX:
        return CHUNKED
    return FLEX if bench.toy else None


def random_bert(bench: Bench) -> EncoderConfig:
    """A BERT-base with random weights and a real tokenizer, as a folder."""
    folder = bench.scratch / "bert"
    shape: dict[str, Any] = {"initializer_range": 0.06}
    if bench.toy:
        shape |= {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    if not folder.is_dir():
        torch.manual_seed(0)
        model = AutoModel.from_config(BertConfig(**shape), dtype=torch.float32, trust_remote_code=False)
        model.save_pretrained(folder)
        for path in (bench.inputs / TOKENIZER).iterdir():
            shutil.copy(path, folder / path.name)
    return EncoderConfig(model=str(folder), pooling="cls", batch_tokens=bench.batch_tokens)
