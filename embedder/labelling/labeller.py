"""Labels groups: sample outputs, score them with and without each candidate, rank. Knows no cluster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from embedder.config.label import LabelConfig
from embedder.config.run import LlmConfig
from embedder.config.tasks import VERDICTS, TaskSpec
from embedder.data.records import unrewarded
from embedder.hashing import row_seed
from embedder.labelling.backends import choose_backend
from embedder.labelling.corpus_outputs import OutputPools, choose_outputs
from embedder.labelling.own_answers import evidence_prompt
from embedder.labelling.prompts import Prefix, PromptBuilder, Shot, ShotPools, choose_shots, prompt_builder
from embedder.labelling.rewards import distinct_samples, task_rewards
from embedder.labelling.sampling import Sampling
from embedder.models.llm import LanguageModel
from embedder.models.memory import apart_on_memory_error

Group = dict[str, Any]

MAX_CHARACTERS = 1_000_000
"""A group with a longer text is an error: reading it would hold up all others for minutes."""


@dataclass(frozen=True)
class _Prompted:
    """A group with its prefixes: without a candidate first, then with each."""

    row: Group
    prefixes: list[Prefix]


class RewardLabeller:
    """Labels groups with one LLM. A group that cannot be scored keeps `rewards` null and says why in `error`."""

    def __init__(
        self,
        lm: LanguageModel,
        llm: LlmConfig,
        label: LabelConfig,
        tasks: dict[str, TaskSpec],
        shot_pools: ShotPools,
        output_pools: OutputPools | None = None,
    ) -> None:
        self.lm, self.llm, self.label_config, self.tasks = lm, llm, label, tasks
        self.shot_pools, self.output_pools = shot_pools, output_pools or {}
        rewarded = [spec.max_output_tokens for spec in tasks.values() if spec.reward != "none"]
        self.backend = choose_backend(lm, llm, max(rewarded, default=1))
        self.pairs = 0
        """Query and candidate pairs scored so far."""
        self._builders: dict[str, PromptBuilder] = {}

    def label(self, groups: Sequence[Group], fingerprint: str) -> list[Group]:
        """The same groups in the same order, each with its reward columns."""
        labelled = [unrewarded(group, self.tasks[group["task"]].reward, fingerprint) for group in groups]
        for task in sorted({group["task"] for group in groups}):
            spec = self.tasks[task]
            if spec.reward != "none":
                builder = self._builder(task)
                # In an order of their own, because it decides which of them are read in one batch: the labels must not
                # depend on the order of the caller.
                rows = sorted((row for row in labelled if row["task"] == task), key=lambda row: str(row["row_id"]))
                prompted = [group for row in rows if (group := self._prompt(builder, spec, row)) is not None]
                for group, reason in apart_on_memory_error(partial(self._reward, builder, spec), prompted):
                    group.row["error"] = reason
        return labelled

    def rescore(self, rows: Sequence[Group]) -> list[list[list[float]]]:
        """The log-likelihoods of scored groups anew: of the outputs without a candidate, then with each."""
        prompts = []
        for row in rows:
            builder = self._builder(row["task"])
            prefixes = self._prefixes(builder, self.tasks[row["task"]], row)
            prompts.append([builder.pack(prefix, row["query"], row["outputs"]) for prefix in prefixes])
        scores = iter(self.backend.score([prompt for packed in prompts for prompt in packed]))
        return [[next(scores) for _ in packed] for packed in prompts]

    def _builder(self, task: str) -> PromptBuilder:
        # Kept, because it finds out only once how the LLM's tokenizer divides the template.
        if task not in self._builders:
            spec = self.tasks[task]
            self._builders[task] = prompt_builder(self.lm, spec, self.llm, spec.reward_template)
        return self._builders[task]

    def _prompt(self, builder: PromptBuilder, spec: TaskSpec, row: Group) -> _Prompted | None:
        """The prefixes of a group; None, with the reason in the row, where one cannot be made."""
        row["error"] = unusable(row, spec.needs_answers)
        if row["error"] is None and spec.needs_answers and not builder.output(row["answers"][0], row["query"]):
            row["error"] = "the desired output has no token"
        if row["error"] is not None:
            return None
        prefixes = self._prefixes(builder, spec, row)
        if prefixes[0].query_cut or not prefixes[0].ids:
            row["error"] = f"the query has no token, or needs more than the {builder.max_prefix_tokens} of a prefix"
            return None
        lost = [i for i, prefix in enumerate(prefixes[1:]) if prefix.passage_lost]
        if lost:
            row["error"] = f"candidate {lost[0]}: nothing of it fits into {builder.max_prefix_tokens} prefix tokens"
            return None
        row["truncated"] = sum(prefix.passage_cut for prefix in prefixes)
        return _Prompted(row, prefixes)

    def _shots(self, spec: TaskSpec, row: Group) -> list[Shot]:
        if spec.reward == "judgement":
            return []  # they show answers, and no verdicts
        pool = self.shot_pools.get(row["dataset"], [])
        return choose_shots(pool, row["query"], spec.shots, self.label_config.seed)

    def _prefixes(self, builder: PromptBuilder, spec: TaskSpec, row: Group) -> list[Prefix]:
        """What the LLM reads before an output: without a candidate first, then with each."""
        shots = self._shots(spec, row)
        choices: list[list[str]] = [[], *([text] for text in row["candidate_texts"])]
        return [builder.prefix(row["query"], passages, shots) for passages in choices]

    def _outputs(self, builder: PromptBuilder, spec: TaskSpec, groups: list[_Prompted]) -> list[list[str]]:
        """For each group the desired output, and for rank rewards its distinct rivals: sampled ones, then others'.

        For rewards without a desired output the LLM's own answers, or all verdicts that there are.
        """
        if spec.reward == "own_answers":
            return self._own_answers(builder, spec, groups)
        if spec.reward == "judgement":
            return [list(VERDICTS) for _ in groups]
        if not spec.has_rivals:
            return [[group.row["answers"][0]] for group in groups]
        lengths: list[int | None] = [None] * len(groups)
        if self.label_config.sample_length == "desired":
            lengths = [len(builder.output(group.row["answers"][0], group.row["query"])) for group in groups]
        samples = self._samples(builder, groups, [group.prefixes[0] for group in groups], lengths)
        return [
            _rivals(builder, group.row, [*texts, *self._corpus_outputs(group.row)])
            for group, texts in zip(groups, samples, strict=True)
        ]

    def _own_answers(self, builder: PromptBuilder, spec: TaskSpec, groups: list[_Prompted]) -> list[list[str]]:
        """What the LLM answers with all candidates before it; one answer stands there as often as it is written."""
        seed = self.label_config.seed
        prompts = [evidence_prompt(builder, group.row, self._shots(spec, group.row), seed) for group in groups]
        samples = self._samples(builder, groups, prompts, [None] * len(groups))
        return [
            [text for text in texts if builder.output(text, group.row["query"])]
            for group, texts in zip(groups, samples, strict=True)
        ]

    def _corpus_outputs(self, row: Group) -> list[str]:
        """Desired outputs of other queries of the dataset."""
        pool, config = self.output_pools.get(row["dataset"], []), self.label_config
        names = row["dataset"], row["query_id"]
        return choose_outputs(pool, row["answers"], config.corpus_outputs, config.seed, *names)

    def _samples(
        self, builder: PromptBuilder, groups: list[_Prompted], prompts: list[Prefix], lengths: list[int | None]
    ) -> list[list[str]]:
        """Outputs of each group that are sampled with its prompt; None: as long as the task's may be."""
        config = self.label_config
        if not config.num_samples or not groups:
            return [[] for _ in groups]
        sampling = Sampling(
            num_samples=config.num_samples,
            max_tokens=max((length for length in lengths if length), default=builder.max_output_tokens),
            temperature=config.temperature,
            top_k=config.top_k,
            top_p=config.top_p,
            end_ids=self.lm.end_ids,
            stop=builder.template.stop,
            stop_ids=self.lm.stop_ids(builder.template.stop),
        )
        # By query and not by position, so that a label stays the same whatever stands around it.
        seeds = [row_seed(config.seed, "sample", group.row["dataset"], group.row["query_id"]) for group in groups]
        drawn = self.backend.sample([prompt.ids for prompt in prompts], seeds, sampling)
        # Cut afterwards, because a token does not depend on how many may follow it.
        return [
            [builder.clean_sample(tokens[:length]) for tokens in samples]
            for samples, length in zip(drawn, lengths, strict=True)
        ]

    def _reward(self, builder: PromptBuilder, spec: TaskSpec, groups: list[_Prompted]) -> None:
        """Sample for, score and reward groups of one task."""
        written = list(zip(groups, self._outputs(builder, spec, groups), strict=True))
        for group, texts in written:
            if not texts:
                group.row["error"] = "the LLM wrote no answer with the candidates before it"
        found = [(group, texts) for group, texts in written if texts]
        # An answer that the LLM wrote several times is read once: a server is paid for each.
        distinct = [list(dict.fromkeys(texts)) for _, texts in found]
        prompts = [
            [builder.pack(prefix, group.row["query"], texts) for prefix in group.prefixes]
            for (group, _), texts in zip(found, distinct, strict=True)
        ]
        # All groups in one call, so that groups with common passages share the tree.
        scores = iter(self.backend.score([prompt for packed in prompts for prompt in packed]))
        for (group, texts), once, packed in zip(found, distinct, prompts, strict=True):
            places = [once.index(text) for text in texts]
            group.row["outputs"] = texts
            group.row["output_tokens"] = [packed[0].scored_tokens[place] for place in places]
            values = [next(scores) for _ in packed]
            _fill(group.row, spec, [[row[place] for place in places] for row in values])
            self.pairs += len(packed) - 1


def unusable(row: Group, needs_answers: bool) -> str | None:
    """Why a group cannot be rewarded by any LLM; None if it can."""
    if not row["candidate_texts"]:
        return "no candidates"
    if needs_answers and not row["answers"]:
        return "no answer"
    texts = {"the query": row["query"]} | ({"the desired output": row["answers"][0]} if needs_answers else {})
    texts |= {f"candidate {i}": text for i, text in enumerate(row["candidate_texts"])}
    for name, text in texts.items():
        if len(text) > MAX_CHARACTERS:
            return f"{name} has {len(text):,} characters, more than {MAX_CHARACTERS:,}"
        if not text.strip():
            return f"{name} is empty"
    return None


def _rivals(builder: PromptBuilder, row: Group, others: list[str]) -> list[str]:
    """The desired output and the others that differ from it and from each other in the tokens that are scored."""
    query, answers = row["query"], row["answers"]
    # The desired output must come first: the rewards take it from entry 0.
    kept = {tuple(builder.output(answers[0], query)): answers[0]}
    for text in distinct_samples(others, answers):
        if tokens := tuple(builder.output(text, query)):
            kept.setdefault(tokens, text)
    return list(kept.values())


def _fill(row: Group, spec: TaskSpec, values: list[list[float]]) -> None:
    """Enter scores and rewards; `values` holds the scores without a candidate first."""
    row["base_scores"], row["scores"] = values[0], values[1:]
    try:
        row["rewards"] = task_rewards(spec, values[0], values[1:], row["output_tokens"])
    except ValueError as error:
        row["error"] = str(error)
