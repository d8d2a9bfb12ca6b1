"""Tells before any work whether the LLM's prompt holds the recent text of long documents together with a candidate.

By sizes alone: the LLM is not loaded. Where its tokenizer is not at hand, a token has four characters by rule of thumb.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from embedder.config.prepare import Source
from embedder.config.run import RunConfig
from embedder.data.first_rows import ContinuedText
from embedder.errors import ConfigError, EmbedderError
from embedder.models.locate import PACKAGE_SCHEME, locate_model
from embedder.run.cost import CHARACTERS_A_TOKEN, characters_a_token, tokens_of

ENOUGH = 0.95
"""Share of the prompts for which the remedy of a refusal makes room."""
STEP = 64
"""The remedy is a multiple of it."""


def prompt_room_lines(config: RunConfig, source: Source, sample: Sequence[ContinuedText]) -> list[str]:
    """A line where some prompts lose the end of their candidate, and one where outputs are scored in part alone.

    The recent text itself is never cut: a group whose recent text does not fit gets no reward and says why.

    Raises:
        ConfigError: most prompts do not fit.
    """
    llm, spec = config.llm, config.tasks[source.task]
    if llm is None or not sample or (spec.reward == "none" and not config.evaluate.asks):
        return []
    a_token = _characters_a_token(llm.model, [text.query for text in sample])
    needed = sorted(tokens_of(len(text.query) + len(text.passage), a_token) for text in sample)
    outputs = sorted(tokens_of(len(text.output), a_token) for text in sample)
    most, room = needed[int(ENOUGH * (len(needed) - 1))], llm.max_prefix_tokens
    if needed[len(needed) // 2] > room:
        raise ConfigError(
            f"source {source.dataset}: llm.max_prefix_tokens is {room}, but recent text and candidate together need "
            f"about {needed[len(needed) // 2]:,.0f} tokens; raise it to {STEP * (int(most) // STEP + 1)}, or lower "
            f"chunk_words ({source.chunk_words}) or recent_chunks ({source.recent_chunks}) of the source"
        )
    lines = []
    if too_long := sum(tokens > room for tokens in needed):
        lines.append(
            f"{source.dataset}: in about {too_long} of {len(needed)} prompts the longest candidate loses its end; "
            f"llm.max_prefix_tokens is {room}, and 95 % of the prompts need at most {most:,.0f}"
        )
    if outputs[len(outputs) // 2] > spec.max_output_tokens:
        lines.append(
            f"{source.dataset}: outputs have about {outputs[len(outputs) // 2]:,.0f} tokens, of which "
            f"tasks.{source.task}.max_output_tokens {spec.max_output_tokens} are scored"
        )
    return lines


def _characters_a_token(model: str, texts: Sequence[str]) -> float:
    # Not of a hub name or an object store, because the whole LLM would be fetched for its tokenizer.
    if not model.startswith(PACKAGE_SCHEME) and not Path(model).expanduser().is_dir():
        return CHARACTERS_A_TOKEN
    try:
        return characters_a_token(locate_model(model), texts)
    except EmbedderError:
        # The jobs that load the LLM refuse it with their own words.
        return CHARACTERS_A_TOKEN
