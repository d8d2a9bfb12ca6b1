"""Tiny random models as folders, with tokenizers and chat templates of known kinds, for awkward folders."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

TEXTS = (
    "The quick brown fox jumps over the lazy dog and runs into the dark forest near the old bridge.",
    "Knowledge: Paris is the capital of France, a country in Europe. Q: which city is the capital? A: Paris",
    "A list holds items in order; a dict maps keys to values. user assistant system ignore answer yes no",
)
BERT_SPECIAL = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""The chat template of Qwen and SmolLM."""


def byte_level(special: list[str], size: int = 600) -> Tokenizer:
    """A byte-level BPE, as GPT-2, Llama 3 and Qwen have."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def wrapped(
    tokenizer: Tokenizer, single: str | None = None, added: Iterable[str] = (), **names: Any
) -> PreTrainedTokenizerFast:
    """For transformers; `single` is what becomes of a text, such as "[CLS] $A [SEP]", with the tokens `added`."""
    if single:
        ids = [(token, tokenizer.token_to_id(token)) for token in added]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=single, pair=f"{single} $B:1", special_tokens=ids
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def save_folder(model: PreTrainedModel, folder: Path, tokenizer: PreTrainedTokenizerFast) -> Path:
    """A Hugging Face folder of both."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def bert_folder(folder: Path, tokenizer: PreTrainedTokenizerFast | None = None, **shape: Any) -> Path:
    """A random BERT; `shape` overrides its configuration."""
    torch.manual_seed(0)
    special = list(BERT_SPECIAL.values())
    own = tokenizer or wrapped(byte_level(special), "[CLS] $A [SEP]", ["[CLS]", "[SEP]"], **BERT_SPECIAL)
    sizes = {
        "vocab_size": 600,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 128,
    }
    return save_folder(BertModel(BertConfig(**{**sizes, **shape})), folder, own)


def llama_folder(folder: Path, tokenizer: PreTrainedTokenizerFast, **shape: Any) -> Path:
    """A random Llama with this tokenizer; `shape` overrides its configuration."""
    torch.manual_seed(1)
    sizes = {
        "vocab_size": 600,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.4,
    }
    return save_folder(LlamaForCausalLM(LlamaConfig(**{**sizes, **shape})), folder, tokenizer)


def chat_llm_folder(folder: Path, template: str = CHATML) -> Path:
    """A random Llama whose tokenizer has this chat template."""
    special = ["<pad>", "<unk>", "<|im_start|>", "<|im_end|>", "</s>"]
    tokenizer = wrapped(
        byte_level(special),
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="</s>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
    )
    tokenizer.chat_template = template
    return llama_folder(folder, tokenizer)


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]], encoding: str = "utf-8") -> Path:
    """A JSON Lines file, with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode(encoding))
    return path
