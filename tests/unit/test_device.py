"""Freed memory that is kept is found again without the system's help."""

from __future__ import annotations

import ctypes
import mmap
import os
import resource
import subprocess
import sys

import pytest

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
