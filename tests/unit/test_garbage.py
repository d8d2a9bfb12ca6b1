"""What a replica imports is not searched for garbage again."""

from __future__ import annotations

import subprocess
import sys

SEARCHED = """
import gc
import ray.serve
from serve.garbage import pass_over_imported

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
