"""A device is the one that was given, or an error; freed memory that is kept is found again."""

from __future__ import annotations

import ctypes
import mmap
import os
import resource
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from embedder.errors import DeviceError
from embedder.models import device as module
from embedder.models.device import check_format, resolve_device

FAULTS = """
import resource
import sys
import torch
from embedder.models.device import keep_freed_memory

rows, up, down = torch.ones(1680, 64), torch.ones(64, 1536), torch.ones(1536, 64)

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        (torch.nn.functional.silu(rows @ up) * (rows @ up)) @ down
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

if sys.argv[1] == "keep":
    keep_freed_memory()
faults()
print(faults())
"""
"""How many pages the system had to give for twenty layers like those of a transformer, after twenty to begin with."""


def kernel_counts_faults():
    """Whether touching 256 fresh pages shows in the count: sandboxed kernels leave it at 0."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    with mmap.mmap(-1, 256 * mmap.PAGESIZE) as pages:
        for start in range(0, len(pages), mmap.PAGESIZE):
            pages[start] = 1
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before > 0


@pytest.mark.skipif(not kernel_counts_faults(), reason="this kernel counts no page faults")
@pytest.mark.skipif(
    not sys.platform.startswith("linux") or not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"), reason="no glibc"
)
def test_keep_freed_memory_lets_layers_take_no_new_pages_from_the_system():
    def faults(how):
        command = [sys.executable, "-c", FAULTS, how]
        # glibc's own value at the start. Left to itself it raises it as blocks are freed, on some address layouts so
        # far that nothing is returned, which is what one start in five showed.
        environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(2**17)}
        return int(subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout)

    assert faults("keep") < 100 < 1000 < faults("leave")


class FakeCuda:
    """A card of 80 GB in place of CUDA, the second of two, and what is asked of it."""

    def __init__(self, monkeypatch):
        self.fraction, self.cudnn = 1.0, True
        cuda, ones = torch.cuda, torch.ones
        monkeypatch.setattr(torch, "ones", lambda *shape, device="cpu": ones(*shape))
        monkeypatch.setattr(cuda, "current_device", lambda: 1)
        monkeypatch.setattr(cuda, "device_count", lambda: 2)
        monkeypatch.setattr(cuda, "get_device_properties", lambda number: SimpleNamespace(total_memory=80 * 2**30))
        monkeypatch.setattr(cuda, "set_per_process_memory_fraction", lambda share: setattr(self, "fraction", share))
        monkeypatch.setattr(torch.backends.cuda, "enable_cudnn_sdp", lambda on: setattr(self, "cudnn", on))


@pytest.fixture
def card(monkeypatch):
    return FakeCuda(monkeypatch)


def test_resolve_device_gives_the_cpu_where_no_gpu_was_given_whatever_there_is(card):
    assert resolve_device(0) == torch.device("cpu")
    assert card.cudnn


def test_resolve_device_gives_the_card_that_is_current_and_keeps_cudnn_from_attention(card):
    assert resolve_device(1) == torch.device("cuda", 1)
    assert not card.cudnn and card.fraction == 1.0


@pytest.mark.parametrize(("share", "bytes_left"), [(0.5, 39), (0.25, 19), (0.01, 0.4)])
def test_resolve_device_bounds_the_memory_of_a_share_and_leaves_some_to_cuda_itself(card, share, bytes_left):
    resolve_device(share)
    assert card.fraction * 80 == pytest.approx(bytes_left)


def test_resolve_device_refuses_more_gpus_than_the_process_has(card):
    assert resolve_device(2).index == 1
    with pytest.raises(DeviceError, match="3 GPUs were asked for, but this process has 2; ask for fewer"):
        resolve_device(3)


def test_resolve_device_refuses_a_gpu_that_cannot_be_used_in_one_line_with_the_versions(monkeypatch):
    message = "CUDA driver version is insufficient\nfor CUDA runtime version"

    def broken(*shape, device):
        raise RuntimeError(message)

    monkeypatch.setattr(torch, "ones", broken)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    with pytest.raises(DeviceError) as caught:
        resolve_device(0.5)
    text = str(caught.value)
    assert text.startswith("a GPU was asked for (0.5), but this process cannot use one (CUDA driver version is insuff")
    assert torch.__version__ in text and "CUDA_VISIBLE_DEVICES='3'" in text and "\n" not in text


@pytest.mark.parametrize(
    ("kind", "dtype", "has"), [("cpu", "bfloat16", False), ("cuda", "float32", False), ("cuda", "bfloat16", True)]
)
def test_check_format_takes_what_the_device_computes(monkeypatch, kind, dtype, has):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has)
    check_format(torch.device(kind), getattr(torch, dtype), "llm.dtype")


def test_check_format_refuses_bfloat16_on_a_gpu_without_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    with pytest.raises(DeviceError, match=r"^llm\.dtype is bfloat16, which Tesla T4 does not have; take float32$"):
        check_format(torch.device("cuda"), torch.bfloat16, "llm.dtype")


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch has CUDA")
def test_resolve_device_refuses_a_gpu_with_a_torch_without_cuda():
    with pytest.raises(DeviceError, match=r"a GPU .* \(Torch not compiled with CUDA enabled; .* built without CUDA"):
        resolve_device(1)


def test_cuda_versions_tell_the_driver(monkeypatch, tmp_path):
    class ProcFile(type(tmp_path)):
        def read_text(self, encoding):
            assert str(self) == "/proc/driver/nvidia/version"
            return "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.95.05\nGCC version: 12\n"

    monkeypatch.setattr(module, "Path", ProcFile)
    assert "Kernel Module  580.95.05" in module.cuda_versions() and "GCC" not in module.cuda_versions()
