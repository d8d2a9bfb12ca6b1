"""Tiny random LLMs of other architectures than the Llama and the GPT-2 of conftest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    BertConfig,
    BloomConfig,
    CohereConfig,
    Gemma2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    MixtralConfig,
    OPTConfig,
    PhiConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen2MoeConfig,
)

from tests.conftest import LOUD, save_lm

SIZES = {
    "vocab_size": 600,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "initializer_range": LOUD,
}
WIDE = {**SIZES, "intermediate_size": 64}
GROUPED = {**WIDE, "num_key_value_heads": 2}
EXPERTS = {**GROUPED, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "num_experts": 4}

SHARING: dict[str, PreTrainedConfig] = {
    "qwen2": Qwen2Config(**GROUPED),
    "qwen2 that is no sliding one": Qwen2Config(**GROUPED, use_sliding_window=False, sliding_window=8),
    "qwen2 with experts, window 0": Qwen2MoeConfig(**EXPERTS, num_experts_per_tok=2),
    "mistral": MistralConfig(**GROUPED, sliding_window=None),
    "mistral, long window": MistralConfig(**GROUPED, sliding_window=400),
    "mixtral": MixtralConfig(**GROUPED, num_local_experts=4),
    "opt": OPTConfig(**{**SIZES, "init_std": LOUD}, ffn_dim=64, word_embed_proj_dim=32),
    "phi": PhiConfig(**WIDE),
    "gpt_neox": GPTNeoXConfig(**WIDE),
    "tied llama": LlamaConfig(**GROUPED, tie_word_embeddings=True),
}
"""Their attention can be replaced."""

SEQUENTIAL: dict[str, PreTrainedConfig] = {
    "mistral, short window": MistralConfig(**GROUPED, sliding_window=8),
    "gemma2, capped logits": Gemma2Config(**GROUPED, head_dim=8),
    "cohere, scaled logits": CohereConfig(**GROUPED),
    "bloom, its own attention": BloomConfig(
        vocab_size=600, hidden_size=32, n_layer=2, n_head=4, initializer_range=LOUD
    ),
    "mamba, no attention": MambaConfig(
        vocab_size=600, hidden_size=32, num_hidden_layers=2, state_size=8, initializer_range=LOUD
    ),
    "llama, dynamic positions": LlamaConfig(
        **{**GROUPED, "max_position_embeddings": 512},
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 1e4,
            "factor": 16.0,
            "original_max_position_embeddings": 32,
            "short_factor": [1.0] * 4,
            "long_factor": [4.0] * 4,
        },
    ),
}
"""They must be scored one sequence at a time."""

CAPPED = Gemma2Config(**GROUPED, head_dim=8, attn_logit_softcapping=5.0, final_logit_softcapping=None)
"""Its attention has a term that trees of prompts lack, and its logits have none."""

MORE = {**GROUPED, "head_dim": 8, "num_hidden_layers": 4}
ROUTED = {"num_experts_per_tok": 2, "moe_intermediate_size": 16, "num_experts": 4}
LOCAL = {"num_local_experts": 4}
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3": {},
    "qwen3_moe": ROUTED,
    "gemma": {},
    "gemma2": {"sliding_window": 8},
    "gemma3_text": {"sliding_window": 8},
    "gpt_oss": {"sliding_window": 8, "num_experts_per_tok": 2, **LOCAL},
    "llama4_text": {"attention_chunk_size": 8, "intermediate_size_mlp": 64, **LOCAL},
    "olmo3": {"sliding_window": 8},
    "granite": {},
    "cohere2": {"sliding_window": 8},
    "smollm3": {},
    "starcoder2": {"sliding_window": 8},
    "mistral": {"sliding_window": 8},
    "stablelm": {},
    "nemotron": {},
    "helium": {},
    "diffllama": {},
}
"""More families by the name of their architecture: what of `MORE` they have otherwise."""


def family_config(name: str) -> PreTrainedConfig:
    """The configuration of a tiny model of a family."""
    special = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 2}
    return CONFIG_MAPPING[name](**{**MORE, **special, **FAMILIES[name]})


ENCODER = BertConfig(**WIDE)


def save_tiny(config: PreTrainedConfig, folder: Path) -> Path:
    """A random model of this configuration as a folder."""
    torch.manual_seed(3)
    return save_lm(folder, AutoModelForCausalLM.from_config(config))
