"""Groups to labelled groups: sample outputs, score them with and without each candidate, rank. Knows no cluster."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from embedder.config import LabelConfig, LlmConfig
from embedder.labelling.prompts import PromptBuilder, Shot, choose_shots, prompt_builder
from embedder.labelling.rewards import distinct_samples, group_rewards
from embedder.labelling.sampling import Sampling, sample_outputs
from embedder.labelling.scorer import PackedPrompt, PackedScorer
from embedder.lm import CausalLm
from embedder.records import group_id, row_seed
from embedder.tasks import TaskSpec

Group = dict[str, Any]
ShotPools = dict[str, list[tuple[str, str, str]]]
"""By dataset: (query_id, query, answer) rows from which worked examples are chosen."""


def unrewarded(group: Group, task: TaskSpec, fingerprint: str) -> Group:
    """A group with empty reward columns: all there is to do for a task without rewards."""
    empty = dict.fromkeys(("rewards", "outputs", "base_scores", "scores", "error"))
    return {**group, **empty, "row_id": group_id(group), "reward": task.reward, "label_fingerprint": fingerprint}


class RewardLabeller:
    """Labels groups with one LLM. A group that cannot be scored keeps `rewards` null and says why in `error`."""

    def __init__(
        self, lm: CausalLm, llm: LlmConfig, label: LabelConfig, tasks: dict[str, TaskSpec], shot_pools: ShotPools
    ) -> None:
        self.lm, self.llm, self.label_config, self.tasks, self.shot_pools = lm, llm, label, tasks, shot_pools
        self.scorer = PackedScorer(lm, llm.batch_tokens)

    def label(self, groups: Sequence[Group], fingerprint: str) -> list[Group]:
        """The same groups in the same order, each with its reward columns."""
        labelled = [unrewarded(group, self.tasks[group["task"]], fingerprint) for group in groups]
        for task in sorted({group["task"] for group in groups}):
            if self.tasks[task].reward != "none":
                self._label_task(task, [row for row in labelled if row["task"] == task])
        return labelled

    def _label_task(self, task: str, rows: list[Group]) -> None:
        """Fill the reward columns of rows of one task."""
        spec = self.tasks[task]
        builder = prompt_builder(self.lm, spec, self.llm)
        shots = [self._shots(row, spec) for row in rows]
        outputs = [[row["answers"][0]] for row in rows]
        if spec.reward == "rank":
            for known, drawn in zip(outputs, self._sample(builder, rows, shots), strict=True):
                known.extend(drawn)
        prompts, owners = [], []
        for i, row in enumerate(rows):
            if not row["candidate_texts"]:
                row["error"] = "no candidates"
                continue
            encoded = [builder.output(output) for output in outputs[i]]
            if not all(encoded):
                row["error"] = "an output has no token"
                continue
            for passages in ([], *([text] for text in row["candidate_texts"])):
                prompts.append(PackedPrompt(builder.prefix(row["query"], passages, shots[i]), encoded))
                owners.append(i)
        scores: dict[int, list[list[float]]] = {}
        for owner, values in zip(owners, self.scorer.score(prompts), strict=True):
            scores.setdefault(owner, []).append(values)
        for i, table in scores.items():
            _fill(rows[i], spec.reward, outputs[i], table)

    def _shots(self, row: Group, spec: TaskSpec) -> list[Shot]:
        return choose_shots(
            self.shot_pools.get(row["dataset"], []), row["query_id"], spec.shots, self.label_config.seed
        )

    def _sample(self, builder: PromptBuilder, rows: list[Group], shots: list[list[Shot]]) -> list[list[str]]:
        """Distinct sampled outputs of each row, drawn without a candidate."""
        config = self.label_config
        sampling = Sampling(config.num_samples, builder.max_output_tokens, config.temperature, config.top_k)
        prefixes = [builder.prefix(row["query"], [], shot) for row, shot in zip(rows, shots, strict=True)]
        seeds = [row_seed(config.seed, "sample", row["dataset"], row["query_id"]) for row in rows]
        drawn = sample_outputs(self.lm, prefixes, seeds, sampling, self.llm.batch_tokens)
        texts = [[builder.clean_sample(tokens) for tokens in samples] for samples in drawn]
        # A sample is scored as the tokens of its text, so two texts that differ only past the cut are one output.
        return [distinct_samples(samples, row["answers"]) for samples, row in zip(texts, rows, strict=True)]


def _fill(row: Group, reward: str, outputs: list[str], values: list[list[float]]) -> None:
    """Enter scores and rewards; `values` holds the scores without a candidate first."""
    row["outputs"], row["base_scores"], row["scores"] = outputs, values[0], values[1:]
    try:
        row["rewards"] = group_rewards(reward, values[0], values[1:])
    except ValueError as error:
        row["error"] = str(error)
