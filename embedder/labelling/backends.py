"""Chooses how an LLM is read: as trees that share prefixes where that is right for it, else one sequence at a time."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from typing import Protocol, cast

import torch
from transformers import PreTrainedConfig

from embedder.config.endpoints import LlmEndpoint
from embedder.config.run import CHUNKED, FLEX, SEQUENTIAL, LlmConfig, TreeScorer
from embedder.errors import ConfigError, ModelError
from embedder.labelling.chat_backend import ChatBackend
from embedder.labelling.compute_cost import ModelWork
from embedder.labelling.divided_backend import DividedBackend, OwnBackend
from embedder.labelling.graph_sampling import read_one_token
from embedder.labelling.http_backend import HttpBackend
from embedder.labelling.prefix_tree import PackedPrompt
from embedder.labelling.sampling import Sampling
from embedder.labelling.sequential_backend import SequentialBackend
from embedder.labelling.server_backend import ServerIdentity
from embedder.labelling.tree_attention import ATTENTION, FurtherTerms
from embedder.labelling.tree_backend import TreeBackend
from embedder.models.causal_lm import CausalLm
from embedder.models.compiled import compiler_errors, lacking_compiler
from embedder.models.llm import LanguageModel
from embedder.models.memory import BatchLimit, is_memory_error
from embedder.models.remote_llm import RemoteLlm

LOG = logging.getLogger(__name__)

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.2}
"""Nats a token by which tree and single sequence may differ in the trial, on average over its outputs.

In bfloat16 either is off by up to 0.5 (SmolLM2), and one from the other by 0.05 on average.
"""


class LlmBackend(Protocol):
    """Scores and samples with one LLM."""

    @property
    def lm(self) -> LanguageModel:
        """The LLM."""

    @property
    def work(self) -> ModelWork:
        """What scoring took so far; sampling is not counted."""

    @property
    def how(self) -> str:
        """How outputs are scored, on which the last digits depend: by what, and in batches of what size at most."""

    @property
    def limits(self) -> Sequence[BatchLimit]:
        """What it has learnt of the batches that memory has room for."""

    def score(self, prompts: Sequence[PackedPrompt]) -> list[list[float]]:
        """For each prompt the mean log-likelihood (nats) of the scored tokens of each of its outputs.

        Raises:
            ValueError: a prefix or output has no token.
        """

    def sample(self, prefixes: Sequence[list[int]], seeds: Sequence[int], sampling: Sampling) -> list[list[list[int]]]:
        """Token ids of `num_samples` outputs a prefix, drawn with the seed of the prefix."""


def choose_backend(lm: LanguageModel, config: LlmConfig, max_output_tokens: int) -> LlmBackend:
    """The backend that the run file names, or the fastest one that is right for an LLM and prompts of this length.

    Raises:
        ConfigError: the LLM or its server has too few positions for the prompts.
        ModelError: a scorer that is named, or the one for a GPU, is not right for the LLM; or a server gives no
            log-likelihoods of prompts.
    """
    longest = config.max_prefix_tokens + max_output_tokens
    if isinstance(lm, RemoteLlm):
        return _told(server_backend(lm, longest))
    lm = cast(CausalLm, lm)  # the other of the two kinds
    known = getattr(lm.model.config.get_text_config(), "max_position_embeddings", None)
    if known and 0 < known < longest:
        raise ConfigError(
            f"llm.max_prefix_tokens {config.max_prefix_tokens} and outputs of {max_output_tokens} tokens need "
            f"{longest} positions, but llm.model {config.model!r} has {known}; lower llm.max_prefix_tokens"
        )
    choose = partial(_chosen, config=config, longest=longest)
    backend = choose(lm) if lm.followers is None else DividedBackend(lm, lm.followers, choose)
    return _told(backend)


def server_backend(lm: RemoteLlm, longest: int) -> HttpBackend | ChatBackend:
    """The backend for a server, by the interface that the run file names.

    Raises:
        ConfigError, ModelError: the server cannot be used.
    """
    return (ChatBackend if lm.endpoint.interface == "chat" else HttpBackend)(lm, longest)


def find_server(llm: LlmConfig, endpoint: LlmEndpoint, longest: int) -> ServerIdentity:
    """What the server of a run file is, by a few short requests.

    Raises:
        ConfigError, ModelError: it cannot be used, as for the backend.
    """
    lm = RemoteLlm.of(llm, endpoint)
    try:
        return server_backend(lm, longest).identity
    finally:
        lm.server.close()


def _told(backend: LlmBackend) -> LlmBackend:
    LOG.info("outputs are scored by: %s", backend.how)
    return backend


def _chosen(lm: CausalLm, config: LlmConfig, longest: int) -> OwnBackend:
    must = config.scorer != "auto"
    scorer = best_scorer(lm) if config.scorer == "auto" else config.scorer
    if scorer == SEQUENTIAL:
        return SequentialBackend(lm)
    remedy = f"set llm.scorer to {SEQUENTIAL!r}, which is about ten times slower"
    reach = full_attention_length(lm.model.config.get_text_config())
    # A window longer than the trial's prompts would pass the trial, so it is looked up first.
    if reach is not None and reach < longest:
        reason = f"the LLM treats texts of more than {reach} tokens otherwise"
    else:
        try:
            backend, reason = try_tree(lm, config.batch_tokens, scorer)
        except FurtherTerms as error:
            reason = str(error)
        else:
            if backend is not None:
                return backend
            # Ten times slower would be no fall-back for a GPU but a bill: what fails there is told.
            must = must or lm.device.type == "cuda"
            remedy += f", or to {CHUNKED!r}" if scorer == FLEX else ""
    if must:
        raise ModelError(
            f"llm.model {config.model!r} cannot be scored by {scorer!r} on {lm.device.type}: {reason}; {remedy}"
        )
    LOG.warning("%s: outputs are scored one by one, about ten times slower", reason)
    return SequentialBackend(lm)


def best_scorer(lm: CausalLm) -> TreeScorer:
    """The fastest way to read trees on the LLM's device."""
    # Half precision alone has fast kernels there.
    if lm.device.type != "cuda" or lm.model.dtype == torch.float32:
        return CHUNKED
    if lacking := lacking_compiler():
        LOG.warning("%s is missing, so that outputs are scored by %r, about half as fast", lacking, CHUNKED)
        return CHUNKED
    return FLEX


def try_tree(lm: CausalLm, batch_tokens: int, scorer: TreeScorer) -> tuple[TreeBackend | None, str]:
    """The tree backend if it is right for this LLM; else None, and why it is not.

    No name of a model tells whether its attention can be replaced or whether it scales its logits. So a few short
    prompts are scored in both ways; if they disagree, the tree is not used.

    Raises:
        FurtherTerms: the LLM's attention has some, so that no tree is right for it.
    """
    # A row of several blocks, or else the trial would say little of how blocks are passed over.
    trial = [*TRIAL, *LONG_TRIAL] if scorer == FLEX else TRIAL
    # The expected scores must come from the model's own attention, so before it is replaced.
    expected = SequentialBackend(lm).score(trial)
    before = lm.model.config._attn_implementation
    try:
        lm.model.set_attn_implementation(ATTENTION)
        # Further terms are refused here, before the layers are compiled, which those of a refused LLM must not be.
        read_one_token(lm)
        tree = TreeBackend(lm, batch_tokens, scorer)
        apart = _mean_difference(tree.score(trial), expected)
        tree.sample([prompt.prefix for prompt in TRIAL], [0, 1], Sampling(2, 3, 1.0, 50))
    except FurtherTerms:
        lm.model.set_attn_implementation(before)
        raise
    except compiler_errors() as error:
        if is_memory_error(error):
            raise  # it says nothing about the model
        reason = f"the LLM's attention cannot share prefixes ({str(error).partition(chr(10))[0]})"
    else:
        # The comparison is false for NaN, so a model whose scores are no numbers fails the trial.
        if apart <= TOLERANCE.get(lm.model.dtype, 0.2):
            tree.work = ModelWork(tree.work.size)  # the trial is no work that counts
            return tree, ""
        reason = f"with shared prefixes scores differ by {apart:.3g} nats"
    lm.model.set_attn_implementation(before)
    return None, reason


def full_attention_length(config: PreTrainedConfig) -> int | None:
    """Up to which length every token sees all before it, at positions that do not depend on what else is read.

    None: at any length. Beyond it a sliding window hides tokens, or the position encoding changes with the length.
    """
    names = ("sliding_window", "attention_chunk_size")
    limits = [getattr(layer, name, None) for layer in config.per_layer_config for name in names]
    rope = getattr(config, "rope_parameters", None) or {}
    # Models with layers of several kinds nest one set of parameters for each kind.
    for kind in (rope, *rope.values()):
        if isinstance(kind, dict) and kind.get("rope_type") in {"dynamic", "longrope"}:
            limits.append(kind.get("original_max_position_embeddings") or config.max_position_embeddings)
    return min((limit for limit in limits if limit), default=None)


TRIAL = [
    PackedPrompt([5, 6, 7, 8, 9, 10], [[11, 12, 13, 14, 15, 16], [11, 12, 17, 18, 19, 5, 6], [11, 20, 21, 22, 7, 8]]),
    PackedPrompt([5, 6, 7, 20, 21], [[22, 12, 9, 10, 5, 18], [23, 24, 25, 26, 8, 13, 7]]),
]
"""Two prompts that begin alike, with outputs that do too; any vocabulary has these token ids."""
LONG_TRIAL = [
    PackedPrompt([5, 6, 7, first, *range(26, 6, -1)], [[first, 12, 9], [8, first, 25]]) for first in range(9, 25)
]
"""Sixteen prompts that fill several blocks of a row."""


def _mean_difference(first: list[list[float]], second: list[list[float]]) -> float:
    pairs = [pair for left, right in zip(first, second, strict=True) for pair in zip(left, right, strict=True)]
    return sum(abs(left - right) for left, right in pairs) / len(pairs)
