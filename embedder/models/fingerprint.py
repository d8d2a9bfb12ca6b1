"""Which results may stand together: short hashes of everything that changes a result."""

from __future__ import annotations

from pathlib import Path

from embedder.config.label import LabelConfig
from embedder.config.run import EncoderConfig, LlmConfig
from embedder.config.tasks import PROMPT_FORMAT, TaskSpec
from embedder.hashing import content_id
from embedder.models.locate import locate_model, model_fingerprint


def encoder_fingerprint(config: EncoderConfig) -> str:
    """Identity of an encoder: weights, config, tokenizer, pooling, truncation, and 8 bits if it has no more."""
    return located_fingerprint(locate_model(config.model), config)


def located_fingerprint(model: Path | str, config: EncoderConfig) -> str:
    """Identity of the encoder that loading this folder or hub model by a config would give."""
    settings: dict[str, object] = {"pooling": config.pooling, "max_tokens": config.max_tokens}
    # Only where it is set, so that vectors made before there was such a setting stay valid.
    if config.int8:
        settings["int8"] = True
    return model_fingerprint(model, settings)


def label_fingerprint(llm: LlmConfig | None, label: LabelConfig, tasks: dict[str, TaskSpec]) -> str:
    """Identity of log-likelihoods: the LLM, the prompts and the sampling; those of two identities must not be mixed.

    The kind of reward is left out, since rewards are made from the stored log-likelihoods.
    """
    limits = {"dtype": llm.dtype, "max_prefix_tokens": llm.max_prefix_tokens} if llm else {}
    model = llm and model_fingerprint(locate_model(llm.model), limits)
    sampling = [label.num_samples, label.temperature, label.top_k, label.top_p, label.seed]
    prompts = {
        name: [spec.template and spec.template.model_dump(), spec.shots, spec.max_output_tokens]
        for name, spec in tasks.items()
    }
    return content_id(model, sampling, prompts, PROMPT_FORMAT)[:16]
