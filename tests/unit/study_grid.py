"""Made-up values of the whole grid of the study, with gains that are known."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from benchmarks.study_arms import ARMS, FEW, FULL
from benchmarks.study_protocol import EXAMPLES, Training
from benchmarks.study_values import MEASURES, UNTRAINED, Measured, name_of

TASKS = {
    "qa": ("nq", "pubmedqa"),
    "chat": ("irc", "topicalchat"),
    "tool": ("metatool", "apibench"),
    "lrlm": ("books", "code", "peps"),
    "convsearch": ("dstc10", "dstc11", "mtrag"),
    "icl": tuple(name for kind in EXAMPLES for name in kind),
}
QUERIES = 40
WITHOUT_LABELS = ("topicalchat", "books", "code", "peps")
"""Data sets whose relevant passages nobody knows, so that rankings have no measure."""


def made_up(gains: Mapping[tuple[str, str], float], arms: tuple[str, ...] = ("full", "shuffled", "labels")):
    """Everything measured: the gain of (arm, task) and noise of queries and trainings; the documents of books are 5."""
    random = np.random.default_rng(0)
    tasks = {name: task for task, names in TASKS.items() for name in names}
    base = {name: random.normal(0.5, 0.2, QUERIES) for name in tasks}
    ids = [f"q{i}" for i in range(QUERIES)]

    def values(name, gain, spread):
        noise = random.normal(0, 0.02, QUERIES) if spread else np.zeros(QUERIES)
        found = {}
        for measure in MEASURES[tasks[name]]:
            if measure.startswith("nDCG") and name in WITHOUT_LABELS:
                continue
            sign, level = (-1, 3.0) if measure == "perplexity" else (1, 0.0)
            own = level + base[name] + sign * (gain + random.normal(0, spread)) + noise
            weight = 7 if measure == "perplexity" else 1
            found[measure] = {query: (float(value), weight) for query, value in zip(ids, own, strict=True)}
        return found

    def measured(name, arm, by_split):
        return Measured(name, "hash", arm and arm.record(), by_split, tasks)

    everything = {split: {name: values(name, 0.0, 0.0) for name in tasks} for split in ("test", "dev")}
    origins = {"books": {query: f"book {i % 5}" for i, query in enumerate(ids)}}
    found = {name: measured(name, None, everything) for name in UNTRAINED}
    found["base"] = Measured("base", "hash", None, everything, tasks, origins)
    history = [name for task in ("chat", "lrlm") for name in TASKS[task]]
    recent = {split: {name: sets[name] for name in history} for split, sets in everything.items()}
    found["recency"] = measured("recency", None, recent)
    for arm in ARMS:
        for number in range(arm.trainings) if arm.name in arms else ():
            training = Training(number)
            seen, unseen = training.seen(tasks), training.unseen(tasks)

            def of(names, arm=arm):
                return {name: values(name, gains.get((arm.name, tasks[name]), 0.0), 0.004) for name in names}

            split = {"dev": of(seen)} if arm.split == "dev" else {"test": of(unseen)}
            if arm is FULL:
                split = {"test": of(tasks), "dev": of(seen) if number < FEW else {}}
            name = name_of(arm.name, number)
            found[name] = measured(name, arm, split)
    return found
