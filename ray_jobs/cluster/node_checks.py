"""Asks every machine of the cluster what `embedder.run.preflight` wants to know: before a stage, and as they join.

A machine that joins while a stage runs is asked at once. If it cannot work the stage ends with its line, and a stage
does not count as done before every machine that it had was asked.
"""

from __future__ import annotations

import _thread
import logging
import threading
from dataclasses import replace
from types import TracebackType
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from embedder.config.run import RunConfig
from embedder.errors import ConfigError, StorageError
from embedder.run.preflight import (
    Answer,
    Machine,
    Questions,
    answer,
    missed,
    model_needs,
    read_paths,
    shared_folders,
    told,
    too_small,
)
from embedder.run.ray_token import is_own_ray

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 5.0
ANSWER_S = 180.0
"""For an answer; a new node has to start a process and import the libraries first."""
BUSY = ("CPU", "GPU")
"""What a node must have of to be given work."""


class NodeChecks:
    """The machines of a stage while it runs."""

    def __init__(self, stage: str, config: RunConfig) -> None:
        self.lines: list[str] = []
        """What is wrong, a line each."""
        self.answers: list[Answer] = []
        self._known: set[str] = set()
        self._stage, self._config = stage, config
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> NodeChecks:
        """Ask the machines that there are.

        Raises:
            ConfigError: one of them cannot work; or the store ignores conditions.
            StorageError: the driver cannot write, or the store does not answer.
        """
        config = self._config
        reads, needs = read_paths(self._stage, config), model_needs(self._stage, config)
        self._questions = Questions.ask(shared_folders(config), reads, needs)
        try:
            self._ask()
            self._refuse()
        except BaseException:
            self._questions.end()
            raise
        # To a Ray of this process alone no machine joins.
        if not is_own_ray():
            self._watcher.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._watcher.is_alive():
            self._watcher.join()
        try:
            if kind is None:
                self._ask()
            # The interrupt that the watcher sent, or what came of it in a library, gives way to the reason for it.
            self._refuse()
        finally:
            self._questions.end()

    def _refuse(self) -> None:
        if self.lines:
            further = f" (and {len(self.lines) - 1} more like it)" if len(self.lines) > 1 else ""
            raise ConfigError(f"{self.lines[0]}{further}")

    def told(self) -> str:
        """Say how many machines were asked so far, none of which was refused."""
        return told(len(self.answers), self._questions.shared)

    def _watch(self) -> None:
        while not self._ended.wait(LOOK_EVERY_S):
            try:
                self._ask()
            except StorageError as error:
                logger.warning("nodes that joined were not asked, tried again: %s", error)
            if self.lines:
                if not self._ended.is_set():
                    _thread.interrupt_main()
                return

    def _ask(self) -> None:
        """Ask the nodes that were not asked yet."""
        new = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in self._known]
        here = ray.get_runtime_context().get_node_id()
        asked: list[tuple[dict[str, Any], Any]] = []
        for node in new:
            if node["NodeID"] == here:
                self._note(node, answer(self._questions, machine_of(node)))
            elif any(node["Resources"].get(kind) for kind in BUSY):
                where = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                task = ray.remote(num_cpus=0, max_retries=0)(answer).options(scheduling_strategy=where)
                asked.append((node, task.remote(self._questions, machine_of(node))))
        for node, reference in asked:
            if (found := self._answer_of(node, reference)) is not None:
                self._note(node, found)
        if new and not self.lines:
            self.lines = too_small(self._questions.needs, self.answers)

    def _note(self, node: dict[str, Any], found: Answer) -> None:
        self._known.add(node["NodeID"])
        self.answers.append(found)
        self.lines += found.lines

    def _answer_of(self, node: dict[str, Any], reference: Any) -> Answer | None:  # noqa: ANN401
        """Wait for the answer of a node; none if it is to be asked again."""
        machine = machine_of(node)
        try:
            found: Answer = ray.get(reference, timeout=ANSWER_S)
        except GetTimeoutError:
            late = f"{machine.name}: no answer within {ANSWER_S:.0f} s; see its logs, or take it out of the cluster"
            return Answer(machine, [late])
        except RayTaskError as error:
            reason = str(error.cause).strip().splitlines()[-1]
            return Answer(machine, [f"{machine.name}: cannot run this project ({reason}); give all nodes one image"])
        except RayError:
            # It has gone, or its process was killed: asked again while it is there.
            return None
        return replace(found, lines=found.lines or missed(self._questions, machine))


def machine_of(node: dict[str, Any]) -> Machine:
    """Describe a node, as Ray tells of it."""
    resources = node["Resources"]
    # With a part of its id, because several nodes of a test are on one host.
    name = f"node {node['NodeManagerHostname']} ({node['NodeManagerAddress']}, {node['NodeID'][:8]})"
    return Machine(name, resources.get("GPU", 0.0), resources.get("memory", 0.0))
