"""What a replica imports is not searched for garbage again, and what a thread has freed goes back to the system."""

from __future__ import annotations

import subprocess
import sys

import pytest

MIB = 2**20
SEARCHED = """
import gc
import ray.serve
from serve.deployments.replica_memory import pass_over_imported

before = len(gc.get_objects())
pass_over_imported()
loaded = [[] for _ in range(1000)]
pass_over_imported()
print(before, len(gc.get_objects()))
"""
# 67 MiB in blocks of more bytes than Python's own pools take and fewer than glibc asks the system for one by one.
FREED = """
import threading
import psutil
from serve.deployments.replica_memory import return_freed_memory

kept = []

def work():
    blocks = [bytearray(700) for _ in range(100_000)]
    # The last one stays, so that the end of the heap is in use.
    kept.append(blocks[-1])

def memory():
    return psutil.Process().memory_full_info().uss

before = memory()
thread = threading.Thread(target=work)
thread.start()
thread.join()
left = memory()
return_freed_memory()
print(before, left, memory())
"""


def test_garbage_is_searched_for_in_what_is_loaded_and_not_in_what_was_imported() -> None:
    before, searched = map(int, printed_by(SEARCHED).split()[-2:])
    assert before > 50_000 and 1000 <= searched < before / 20


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc alone keeps heaps for threads")
def test_memory_that_a_thread_has_freed_below_the_end_of_its_heap_goes_back_to_the_system() -> None:
    before, left, after = map(int, printed_by(FREED).split())
    assert left - before > 40 * MIB
    assert after - before < 0.2 * (left - before)


def printed_by(program: str) -> str:
    """What a program of its own prints: the heaps and objects of the process that tests are no measure."""
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
