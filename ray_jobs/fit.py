"""Runs a Ray Train trainer while the driver shows the steps that its workers have made."""

from __future__ import annotations

import threading
from collections.abc import Callable

from ray.train import Result
from ray.train.torch import TorchTrainer

from ray_jobs.sight import tracked

POLL_S = 1.0
"""How often the driver looks for new steps."""


def fit_with_progress(
    trainer: TorchTrainer, label: str, steps: int, steps_done: Callable[[], int], note: Callable[[], str] = str
) -> Result:
    """Fit; `steps_done` tells how many of `steps` are made (a worker group that was restarted may go back).

    `note` gives what stands behind the counts.
    """
    finished = threading.Event()
    with tracked(label, steps) as counter:
        counter.skip(steps_done())

        def watch() -> None:
            is_going = False
            while not finished.wait(POLL_S):
                steps = steps_done() - counter.count
                if steps and not is_going:
                    # Until now the workers were started, which may take longer than many steps.
                    is_going = True
                    counter.skip(steps)
                else:
                    counter.advance(steps, note())

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            return trainer.fit()
        finally:
            finished.set()
            watcher.join()
