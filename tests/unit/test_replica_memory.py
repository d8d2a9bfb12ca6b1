"""What a replica imports is not searched for garbage again, and what a thread has freed goes back to the system."""

from __future__ import annotations

import subprocess
import sys
import threading

import psutil
import pytest

from serve.deployments.replica_memory import return_freed_memory

MIB = 2**20
BLOCKS, SIZE = 100_000, 700
"""67 MiB in blocks of more bytes than Python's own pools take and fewer than glibc asks the system for one by one."""
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


def test_garbage_is_searched_for_in_what_is_loaded_and_not_in_what_was_imported() -> None:
    said = subprocess.run([sys.executable, "-c", SEARCHED], capture_output=True, text=True, check=True).stdout
    before, searched = map(int, said.split()[-2:])
    assert before > 50_000 and 1000 <= searched < before / 20


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc alone keeps heaps for threads")
def test_memory_that_a_thread_has_freed_below_the_end_of_its_heap_goes_back_to_the_system() -> None:
    process = psutil.Process()
    kept: list[bytearray] = []

    def work() -> None:
        blocks = [bytearray(SIZE) for _ in range(BLOCKS)]
        # The last one stays, so that the end of the heap is in use.
        kept.append(blocks[-1])

    before = process.memory_full_info().uss
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    left = process.memory_full_info().uss
    return_freed_memory()
    after = process.memory_full_info().uss
    assert left - before > 40 * MIB
    assert after - before < 0.2 * (left - before)
