"""What an LLM does here, score and sample, in the fastest way that is right for it."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from transformers import PreTrainedConfig

from embedder.config.run import LlmConfig
from embedder.errors import ConfigError
from embedder.labelling.compute_cost import ModelWork, model_size
from embedder.labelling.prefix_tree import PackedPrompt
from embedder.labelling.sampling import Sampling, sample_outputs
from embedder.labelling.scorer import TreeScorer
from embedder.labelling.sequential import PlainScorer, sample_plainly
from embedder.labelling.tree_attention import NAME
from embedder.models.causal_lm import CausalLm

LOG = logging.getLogger(__name__)

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.2}
"""Nats a token by which tree and plain sequence may differ in the trial, on average over its outputs.

In bfloat16 either is off by up to 0.5 (SmolLM2), and one from the other by 0.05 on average.
"""


class Engine:
    """Scores and samples with one LLM; raises ConfigError where it has too few positions for the prompts.

    Which models let their attention be replaced, scale their logits or see only a window cannot be told from their
    names, so a few short prompts are scored in both ways first; if they disagree, the plain way is taken.
    """

    def __init__(self, lm: CausalLm, config: LlmConfig, max_output_tokens: int) -> None:
        self.lm = lm
        self.batch_tokens = config.batch_tokens
        longest = config.max_prefix_tokens + max_output_tokens
        known = getattr(lm.model.config.get_text_config(), "max_position_embeddings", None)
        if known and 0 < known < longest:
            raise ConfigError(
                f"llm.max_prefix_tokens {config.max_prefix_tokens} and outputs of {max_output_tokens} tokens need "
                f"{longest} positions, but llm.model {config.model!r} has {known}; lower llm.max_prefix_tokens"
            )
        tree = tree_scorer(lm, config.batch_tokens, longest)
        self.shares_prefixes = tree is not None
        self.scorer: TreeScorer | PlainScorer = tree or PlainScorer(lm)
        self._size = model_size(lm.model)

    @property
    def computed_tokens(self) -> int:
        """Tokens scored so far, shared ones once; sampling is not counted."""
        return self.scorer.work.tokens

    @property
    def flops(self) -> float:
        """Operations that scoring these took at least."""
        return self._size.flops(self.scorer.work)

    def score(self, prompts: Sequence[PackedPrompt]) -> list[list[float]]:
        """For each prompt the mean token log-likelihood (nats) of each of its outputs.

        Raises:
            ValueError: a prefix or output has no token.
        """
        return self.scorer.score(prompts)

    def sample(self, prefixes: Sequence[list[int]], seeds: Sequence[int], sampling: Sampling) -> list[list[list[int]]]:
        """Token ids of `num_samples` outputs a prefix."""
        if self.shares_prefixes:
            return sample_outputs(self.lm, prefixes, seeds, sampling, self.batch_tokens)
        return sample_plainly(self.lm, prefixes, seeds, sampling)


def tree_scorer(lm: CausalLm, batch_tokens: int, longest: int) -> TreeScorer | None:
    """The fast scorer if it is right for this LLM and `longest` tokens; else None, and the log says why."""
    reach = plain_reach(lm.model.config.get_text_config())
    if reach is not None and reach < longest:
        LOG.warning("the LLM treats texts of more than %d tokens otherwise: outputs are scored one by one", reach)
        return None
    expected = PlainScorer(lm).score(TRIAL)
    before = lm.model.config._attn_implementation
    try:
        lm.model.set_attn_implementation(NAME)
        scorer = TreeScorer(lm, batch_tokens)
        apart = _difference(scorer.score(TRIAL), expected)
        sample_outputs(lm, [prompt.prefix for prompt in TRIAL], [0, 1], Sampling(2, 3, 1.0, 50), batch_tokens)
    except torch.OutOfMemoryError:
        raise
    except (ValueError, TypeError, AttributeError, LookupError, AssertionError, RuntimeError) as error:
        LOG.warning("the LLM's attention cannot share prefixes (%s): outputs are scored one by one", error)
    else:
        if apart <= TOLERANCE.get(lm.model.dtype, 0.2):
            scorer.work = ModelWork()
            return scorer
        LOG.warning("with shared prefixes scores differ by %.3g nats: outputs are scored one by one", apart)
    lm.model.set_attn_implementation(before)
    return None


def plain_reach(config: PreTrainedConfig) -> int | None:
    """Up to which length every token sees all before it, at positions that do not depend on what else is read."""
    names = ("sliding_window", "attention_chunk_size")
    limits = [getattr(layer, name, None) for layer in config.per_layer_config for name in names]
    rope = getattr(config, "rope_parameters", None) or {}
    for kind in (rope, *rope.values()):
        if isinstance(kind, dict) and kind.get("rope_type") in {"dynamic", "longrope"}:
            limits.append(kind.get("original_max_position_embeddings") or config.max_position_embeddings)
    return min((limit for limit in limits if limit), default=None)


TRIAL = [
    PackedPrompt([5, 6, 7, 8, 9, 10], [[11, 12, 13, 14, 15, 16], [11, 12, 17, 18, 19, 5, 6], [11, 20, 21, 22, 7, 8]]),
    PackedPrompt([5, 6, 7, 20, 21], [[22, 12, 9, 10, 5, 18], [23, 24, 25, 26, 8, 13, 7]]),
]
"""Two prompts that begin alike, with outputs that do too; any vocabulary has these token ids."""


def _difference(first: list[list[float]], second: list[list[float]]) -> float:
    pairs = [pair for left, right in zip(first, second, strict=True) for pair in zip(left, right, strict=True)]
    return sum(abs(left - right) for left, right in pairs) / len(pairs)
