"""The LLM that writes questions: samples drafts for passages, and scores their outputs with and without passages."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from embedder.config.questions import KindName, QuestionsConfig
from embedder.config.run import LlmConfig
from embedder.config.tasks import KNOWLEDGE, TaskSpec
from embedder.hashing import row_seed
from embedder.labelling.backends import choose_backend
from embedder.labelling.prefix_tree import PackedPrompt
from embedder.labelling.prompts import Prefix, PromptBuilder, Shot, prompt_builder
from embedder.labelling.sampling import Sampling
from embedder.models.llm import LanguageModel
from embedder.writing.drafts import OUTPUT_LABEL, Draft, read_draft
from embedder.writing.question_kinds import KINDS, examples_for

Row = dict[str, Any]
SHORTER = 0.8
"""Part that is kept of passages that do not fit into the prompt."""
LEAST_CHARACTERS = 80


class QuestionWriter:
    """Writes and scores questions with one LLM."""

    def __init__(
        self, lm: LanguageModel, llm: LlmConfig, settings: QuestionsConfig, tasks: dict[str, TaskSpec]
    ) -> None:
        self.lm, self.llm, self.settings, self.tasks = lm, llm, settings, tasks
        self.backend = choose_backend(lm, llm, settings.max_tokens)
        self._writing: dict[KindName, PromptBuilder] = {}
        self._scoring: dict[str, PromptBuilder] = {}

    def write(self, rows: Sequence[Row]) -> list[list[Draft]]:
        """Drafts for each row of passages (`kind`, `texts`, `row_id`), `num_samples` a row.

        A prompt is read once for all of its samples.
        """
        drafts: dict[int, list[Draft]] = {}
        for kind in sorted({row["kind"] for row in rows}):
            builder = self._writer(kind)
            own = [i for i, row in enumerate(rows) if row["kind"] == kind]
            sampling = Sampling(
                num_samples=self.settings.num_samples,
                max_tokens=self.settings.max_tokens,
                temperature=self.settings.temperature,
                top_k=self.settings.top_k,
                top_p=self.settings.top_p,
                end_ids=self.lm.end_ids,
                stop=builder.template.stop,
                stop_ids=self.lm.stop_ids(builder.template.stop),
            )
            # By row and not by position, so that a draft stays the same whatever stands around it.
            seeds = [row_seed(self.settings.seed, "question", rows[i]["row_id"]) for i in own]
            sampled = self.backend.sample([self._prompt(builder, rows[i]).ids for i in own], seeds, sampling)
            for i, samples in zip(own, sampled, strict=True):
                examples = examples_for(kind, rows[i]["texts"][0], self.settings)
                texts = [builder.clean_sample(tokens) for tokens in samples]
                drafts[i] = [read_draft(text, kind, rows[i]["texts"], examples, self.settings) for text in texts]
        return [drafts[i] for i in range(len(rows))]

    def check(self, rows: Sequence[Row]) -> list[Row]:
        """The best draft of each row with the scores that decide about it.

        A row has `task`, `kind`, `texts`, and a list `drafts` of mappings with `query`, `output`, `rank`,
        `other_texts`. The best draft is, of those with a rank if there are any, the one whose output the passages make
        likelier by most; other passages are read for it alone.
        """
        passages = [_choices(row["texts"]) for row in rows]
        first = self._score(
            [(row, draft, choice) for row, given in zip(rows, passages, strict=True) for draft in row["drafts"]
             for choice in ([], *given)]
        )  # fmt: skip
        best = []
        for row, given in zip(rows, passages, strict=True):
            scored = [(draft, [next(first) for _ in range(1 + len(given))]) for draft in row["drafts"]]
            # A score that is no number is never the best one, unless there is no other.
            best.append(max(scored, key=lambda pair: (pair[0]["rank"] is not None, _gain(pair[1]))))
        second = self._score(
            [(row, draft, [text]) for row, (draft, _) in zip(rows, best, strict=True) for text in draft["other_texts"]]
        )
        return [
            {
                **draft,
                "bare": scores[0],
                "own": scores[1],
                "alone": scores[2:] or scores[1:2],
                "others": [next(second) for _ in draft["other_texts"]],
            }
            for draft, scores in best
        ]

    def _prompt(self, builder: PromptBuilder, row: Row) -> Prefix:
        """The prompt for the passages of a row, which lose their ends where they do not fit."""
        kind, texts = KINDS[row["kind"]], list(row["texts"])
        examples = examples_for(row["kind"], texts[0], self.settings)
        shots: list[Shot] = [
            (kind.shown(each.passages), f"{each.query}\n{OUTPUT_LABEL} {each.output}") for each in examples
        ]
        prefix = builder.prefix(kind.shown(texts), [], shots)
        while prefix.query_cut and max(map(len, texts)) > LEAST_CHARACTERS:
            texts = [text[: max(LEAST_CHARACTERS, int(SHORTER * len(text)))] for text in texts]
            prefix = builder.prefix(kind.shown(texts), [], shots)
        return prefix

    def _score(self, asked: Sequence[tuple[Row, Row, Sequence[str]]]) -> Iterator[float]:
        """The log-likelihoods of outputs, one for each (row, draft, passages)."""
        # All in one call, so that prompts with common passages and examples share the tree.
        packed = [self._packed(row, draft, passages) for row, draft, passages in asked]
        return iter([scores[0] for scores in self.backend.score(packed)])

    def _packed(self, row: Row, draft: Row, passages: Sequence[str]) -> PackedPrompt:
        builder = self._scorer(row["task"])
        examples = examples_for(row["kind"], row["texts"][0], self.settings)
        shots = [(each.query, each.output) for each in examples]
        prefix = builder.prefix(draft["query"], passages, shots)
        return builder.pack(prefix, draft["query"], [draft["output"]])

    def _writer(self, kind: KindName) -> PromptBuilder:
        if kind not in self._writing:
            spec = TaskSpec(query_instruction="", passage_instruction="", max_output_tokens=self.settings.max_tokens)
            self._writing[kind] = prompt_builder(self.lm, spec, self.llm, KINDS[kind].template)
        return self._writing[kind]

    def _scorer(self, task: str) -> PromptBuilder:
        if task not in self._scoring:
            spec = self.tasks[task].model_copy(update={"max_output_tokens": self.settings.max_tokens})
            self._scoring[task] = prompt_builder(self.lm, spec, self.llm, spec.template or KNOWLEDGE)
        return self._scoring[task]


def _choices(texts: Sequence[str]) -> list[Sequence[str]]:
    """All passages together, and each alone where there are several."""
    return [texts, *([text] for text in texts)] if len(texts) > 1 else [texts]


def _gain(scores: Sequence[float]) -> float:
    """The gain of a draft: without a passage first, then with its own."""
    gain = scores[1] - scores[0]
    return -math.inf if math.isnan(gain) else gain
