"""What an LLM makes of retrieved passages: greedy answers judged by exact match and F1, and log-likelihoods."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Any

from embedder.config import LlmConfig
from embedder.labelling.engine import Engine
from embedder.labelling.labeller import ShotPools
from embedder.labelling.prefix_tree import PackedPrompt
from embedder.labelling.prompts import PromptBuilder, choose_shots, prompt_builder
from embedder.labelling.sampling import Sampling
from embedder.lm import CausalLm
from embedder.tasks import OPEN_QUESTION, TaskSpec

ARTICLES = re.compile(r"\b(a|an|the)\b")
GREEDY_TOKENS = 16


def normalise_answer(text: str) -> str:
    """Lower case without articles, punctuation and extra spaces (SQuAD, Rajpurkar et al. 2016)."""
    plain = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return " ".join(ARTICLES.sub(" ", plain).split())


def exact_match(answer: str, accepted: Sequence[str]) -> float:
    """1 if the normalised answer equals an accepted one, else 0."""
    return float(normalise_answer(answer) in {normalise_answer(gold) for gold in accepted})


def contains_answer(answer: str, accepted: Sequence[str]) -> float:
    """1 if an accepted answer stands as whole words in the answer, else 0 (PopQA's criterion)."""
    padded = f" {normalise_answer(answer)} "
    return float(any(f" {normalise_answer(gold)} " in padded for gold in accepted if normalise_answer(gold)))


def token_f1(answer: str, accepted: Sequence[str]) -> float:
    """Best F1 of the answer's words over the accepted answers."""
    return max(
        (_f1(normalise_answer(answer).split(), normalise_answer(gold).split()) for gold in accepted), default=0.0
    )


def _f1(words: list[str], gold: list[str]) -> float:
    common = sum((Counter(words) & Counter(gold)).values())
    return 2 * common / (len(words) + len(gold)) if common else 0.0


class LlmJudge:
    """Answers or scores test queries with retrieved passages before them."""

    def __init__(
        self, lm: CausalLm, llm: LlmConfig, tasks: dict[str, TaskSpec], shot_pools: ShotPools, seed: int
    ) -> None:
        self.lm, self.llm, self.tasks, self.shot_pools, self.seed = lm, llm, tasks, shot_pools, seed
        self.engine = Engine(lm, llm, max(GREEDY_TOKENS, *(spec.max_output_tokens for spec in tasks.values())))

    def likelihoods(self, task: str, rows: Sequence[dict[str, Any]]) -> list[float]:
        """Mean token log-likelihood of each row's first answer given its `passages`."""
        spec = self.tasks[task]
        builder = prompt_builder(self.lm, spec, self.llm)
        outputs = [builder.output(row["answers"][0]) for row in rows]
        prefixes = self._prefixes(builder, spec, rows)
        prompts = [PackedPrompt(prefix, [output]) for prefix, output in zip(prefixes, outputs, strict=True)]
        return [values[0] for values in self.engine.score(prompts)]

    def answers(self, task: str, rows: Sequence[dict[str, Any]]) -> list[str]:
        """Greedy answers, to the end of the line, with template A.3."""
        spec = self.tasks[task]
        builder = prompt_builder(self.lm, spec, self.llm, OPEN_QUESTION)
        prefixes = self._prefixes(builder, spec, rows)
        greedy = Sampling(
            num_samples=1,
            max_tokens=GREEDY_TOKENS,
            temperature=1.0,
            top_k=1,
            end_ids=self.lm.end_ids,
            stop_ids=self.lm.stop_ids(OPEN_QUESTION.stop),
        )
        drawn = self.engine.sample(prefixes, [0] * len(rows), greedy)
        return [builder.clean_sample(samples[0]) for samples in drawn]

    def _prefixes(self, builder: PromptBuilder, spec: TaskSpec, rows: Sequence[dict[str, Any]]) -> list[list[int]]:
        """Each row's prompt: shots, its passages, its query."""
        prefixes = []
        for row in rows:
            shots = choose_shots(self.shot_pools.get(row["dataset"], []), row["query_id"], spec.shots, self.seed)
            prefixes.append(builder.prefix(row["query"], row["passages"], shots).ids)
        return prefixes
