"""What the card can do at most, and what it costs to show its attention a new shape."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from statistics import median

import torch
import torch.nn.functional as F

from benchmarks.gpu_bench import Bench, format_name
from embedder.models.device import matmul_rate

CHOICES = {0: "math", 1: "flash", 2: "efficient", 3: "cuDNN", 4: "overrideable"}
"""Kernels of `scaled_dot_product_attention` by the numbers of torch's SDPBackend."""
HEADS, WIDTH = 32, 128
NEW_SHAPES = 5
DEAR_SHAPE = 0.005
"""Seconds: cuDNN took 43 to 66 ms to choose a kernel for each new shape, every other kernel less than 1."""


def ceilings(bench: Bench) -> None:
    """Rates of products and copies, then attention by kernel, with what it costs when a shape is new."""
    rates = {"bfloat16": bench.peak_flops, "float32": matmul_rate(bench.device, torch.float32)}
    with _tf32():
        rates["TF32"] = matmul_rate(bench.device, torch.float32)
    for name, rate in rates.items():
        bench.figures.row(f"products in {name}: {rate / 1e12:.0f} TFLOP/s", **{f"{name}_tflops": rate / 1e12})
    copied = copy_rate(bench)
    bench.figures.row(f"copy on the device: {copied / 1e12:.2f} TB/s", copy_tb_s=copied / 1e12)
    for dtype in (torch.bfloat16, torch.float32):
        for groups in (HEADS, HEADS // 4):
            for masked in (True, False):
                attention_row(bench, dtype, groups, masked=masked)
    with _cudnn():
        attention_row(bench, torch.bfloat16, HEADS, masked=True)


def attention_row(bench: Bench, dtype: torch.dtype, groups: int, *, masked: bool) -> None:
    """Which kernel a call takes, how long a shape takes that was never seen, and how long the same again."""
    first, again, choice = [], [], -1
    for number in range(NEW_SHAPES):
        queries, keys = 37 + 3 * number, 211 + 5 * number
        shapes = ((HEADS, queries), (groups, keys), (groups, keys))
        query, key, value = (
            torch.randn(1, heads, length, WIDTH, device=bench.device, dtype=dtype) for heads, length in shapes
        )
        mask = torch.zeros(queries, keys, device=bench.device, dtype=dtype) if masked else None
        shares = groups < HEADS
        choice = torch._fused_sdp_choice(query, key, value, attn_mask=mask, enable_gqa=shares)
        call = partial(F.scaled_dot_product_attention, query, key, value, attn_mask=mask, enable_gqa=shares)
        first.append(bench.seconds(call))
        again.append(bench.seconds(call))
    kind = CHOICES.get(choice, str(choice))
    cudnn = bench.device.type == "cuda" and torch.backends.cuda.cudnn_sdp_enabled()
    name = f"{format_name(dtype)}, {HEADS} heads, {groups} of keys, {'a' if masked else 'no'} mask"
    bench.figures.row(
        f"attention, {name}, cuDNN {'on' if cudnn else 'off'}: {kind}, a new shape {1e3 * median(first):.2f} ms, "
        f"again {1e3 * median(again):.2f}"
    )
    # The median, because the first of all shapes loads the kernel.
    if not cudnn and bench.device.type == "cuda" and median(first) > DEAR_SHAPE:
        bench.figures.check(name, is_right=False, told="a new shape is dear though cuDNN is off")


def copy_rate(bench: Bench) -> float:
    """Bytes read and written a second by a large copy."""
    source = torch.randn(bench.size(2**30, 2**16), device=bench.device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / bench.seconds(lambda: target.copy_(source), 5)


@contextmanager
def _tf32() -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


@contextmanager
def _cudnn() -> Iterator[None]:
    """The attention kernels of cuDNN, as they are where nobody turns them off."""
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(True)
    yield
    torch.backends.cuda.enable_cudnn_sdp(before)
