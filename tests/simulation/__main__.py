"""Many histories, for a night: `python -m tests.simulation --histories 1000000 --first 10000`.

Prints each fault with its seed, and ends with 1 if there was any.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor

from tests.simulation.processes import history

AT_ONCE = 1000


def faults(first: int) -> list[str]:
    """What goes wrong in AT_ONCE histories."""
    worlds = ((seed, history(seed)) for seed in range(first, first + AT_ONCE))
    return [f"seed {seed} {told}" for seed, world in worlds for told in world.faults]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--histories", type=int, default=1_000_000, help=f"in steps of {AT_ONCE}")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="that share the work")
    given = parser.parse_args()
    seeds, began, found, done = range(given.first, given.first + given.histories, AT_ONCE), time.monotonic(), 0, 0
    with ProcessPoolExecutor(given.processes) as pool:
        for told in pool.map(faults, seeds):
            found, done = found + len(told), done + AT_ONCE
            sys.stdout.writelines(f"{line}\n" for line in told)
            sys.stderr.write(f"{done:,} histories, {found} faults, {time.monotonic() - began:.0f} s\n")
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
