"""Plans which groups are labelled together, and estimates what the LLM reads of them.

The plan is a pure function of the rows, so that a restart does the same work again.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from typing import Any

from embedder.config.endpoints import LlmEndpoint
from embedder.config.run import LlmConfig
from embedder.config.tasks import OWN_REWARDS, VERDICTS, TaskSpec
from embedder.data.records import group_id
from embedder.run.cost import tokens_of

SHOT_CHARACTERS = 150
"""Characters that a worked example is taken to have; the longest has 300."""

Unit = list[int]
"""Positions of the groups that are sampled and scored together."""


def plan_units(groups: Sequence[dict[str, Any]], unit_groups: int) -> list[Unit]:
    """Units of at most `unit_groups` groups of one task and dataset, those with common candidates side by side.

    Groups are sorted by the least hash of their candidates (a min-hash): it is equal with the probability of their
    Jaccard overlap, so the LLM mostly reads a passage once for all queries of a unit that share it.
    """
    kinds: dict[tuple[str, str], list[tuple[int, str, int]]] = {}
    for position, group in enumerate(groups):
        # CRC-32 and not `hash`, which differs from process to process.
        least = min((zlib.crc32(text.encode()) for text in group["candidate_texts"]), default=0)
        kinds.setdefault((group["task"], group["dataset"]), []).append((least, group_id(group), position))
    units = []
    for kind in sorted(kinds):
        # The id breaks ties, so that units do not depend on the order of the rows.
        order = [position for _, _, position in sorted(kinds[kind])]
        units += [order[i : i + unit_groups] for i in range(0, len(order), unit_groups)]
    return units


def missing_of(units: Iterable[Unit], is_missing: Sequence[bool]) -> list[Unit]:
    """What is missing of each unit, units of which nothing is missing left out; `is_missing` by position.

    A unit is cut over all groups and then reduced, never cut over the missing ones: since its missing part is
    committed as a whole or not at all, a run that was cut off plans the same parts again.
    """
    parts = ([position for position in unit if is_missing[position]] for unit in units)
    return [part for part in parts if part]


def join_units(units: Iterable[Unit], block_rows: int) -> list[list[Unit]]:
    """Blocks of whole units with at least `block_rows` groups, the last one with what is left."""
    blocks: list[list[Unit]] = []
    rows = 0
    for unit in units:
        if not blocks or rows >= block_rows:
            blocks.append([])
            rows = 0
        blocks[-1].append(unit)
        rows += len(unit)
    return blocks


def unit_tokens(groups: Sequence[dict[str, Any]], task: TaskSpec, num_rivals: int, llm: LlmConfig | None) -> float:
    """Estimated tokens that the LLM reads to score the groups of a unit, from the lengths of their texts.

    A passage is read once for all groups that share it. A query and the outputs after it are read for each candidate,
    and once without. A rival output is taken to be as long as the desired one, and one of the LLM's own answers half as
    long as it may be; the last token is only predicted. Not counted are worked examples, which the groups share, and
    the sampling. A server shares nothing: it reads the whole prompt for each output, the worked examples too, and once
    for the samples.
    """
    if llm is not None and llm.endpoint is not None:
        times = _requests_a_prompt(task, num_rivals, llm.endpoint)
        return sum(_read_apart(group, task, llm.max_prefix_tokens, times) for group in groups)
    most = llm.max_prefix_tokens if llm else float("inf")
    texts = {text for group in groups for text in group["candidate_texts"]}
    tokens = sum(min(most, tokens_of(len(text))) for text in texts)
    outputs = _outputs(task, num_rivals)
    wording = len(task.template.input) if task.template else 0
    for group in groups:
        length = min(task.max_output_tokens - 1, _output_tokens(group, task))
        prompt = min(most, tokens_of(len(group["query"]) + wording)) + outputs * length
        tokens += (len(group["candidate_texts"]) + 1) * prompt
    return tokens


def written_tokens(groups: Sequence[dict[str, Any]], task: TaskSpec, num_rivals: int, llm: LlmConfig | None) -> float:
    """Estimated tokens that a server writes for the groups of a unit; 0 where no server is asked.

    A sample is as long as it may be, and for a score one token is written.
    """
    if llm is None or llm.endpoint is None:
        return 0.0
    times = _requests_a_prompt(task, num_rivals, llm.endpoint)
    sampled = num_rivals * task.max_output_tokens if _is_sampled(task) else 0
    return float(sum(times * (1 + len(group["candidate_texts"])) + sampled for group in groups))


def _requests_a_prompt(task: TaskSpec, num_rivals: int, endpoint: LlmEndpoint) -> int:
    return 1 if endpoint.interface == "chat" else _outputs(task, num_rivals)


def _is_sampled(task: TaskSpec) -> bool:
    return task.has_rivals or task.reward == "own_answers"


def _read_apart(group: dict[str, Any], task: TaskSpec, most: int, times: int) -> float:
    """Estimated tokens of a group whose prompts are read so many times, each with an output, and for its samples."""
    wording = len(task.template.input + task.template.context) if task.template else 0
    beside = len(group["query"]) + wording + task.shots * SHOT_CHARACTERS
    length = min(task.max_output_tokens, _output_tokens(group, task))
    read = [min(most, tokens_of(beside + len(text))) + length for text in ("", *group["candidate_texts"])]
    sampled = 0.0
    if _is_sampled(task):
        evidence = sum(map(len, group["candidate_texts"])) if task.reward == "own_answers" else 0
        sampled = min(most, tokens_of(beside + evidence))
    return times * sum(read) + sampled


def _outputs(task: TaskSpec, num_rivals: int) -> int:
    """Outputs of a group that are scored."""
    if task.reward in OWN_REWARDS:
        return num_rivals if task.reward == "own_answers" else len(VERDICTS)
    return 1 + (num_rivals if task.has_rivals else 0)


def _output_tokens(group: dict[str, Any], task: TaskSpec) -> float:
    """Estimated tokens of an output."""
    if task.reward in OWN_REWARDS:
        return task.max_output_tokens / 2 if task.reward == "own_answers" else 1
    return tokens_of(len(group["answers"][0])) if group["answers"] else 0
