"""Loads the LLM that gives the feedback; a GGUF file is converted once to safetensors and kept in the cache."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from embedder.config import LlmConfig
from embedder.locate import file_sha256, gguf_file, locate_model


@dataclass(frozen=True)
class CausalLm:
    """A causal language model with its tokenizer, in evaluation mode."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = next(self.model.parameters()).device
        return device

    def tokens(self, text: str) -> list[int]:
        """Token ids without special tokens."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])


def prepare_lm(config: LlmConfig, cache: Path) -> Path | str:
    """The folder to load the LLM from; converts a GGUF file into `cache` unless that was done before.

    The converted folder appears by one rename, so that two processes may do this at once.
    """
    source = locate_model(config.model)
    packed = gguf_file(source) if isinstance(source, Path) else None
    if packed is None:
        return source
    folder = cache / f"{packed.stem}-{file_sha256(packed)[:16]}"
    if folder.is_dir():
        return folder
    temporary = cache / f".{folder.name}.{uuid4().hex}"
    temporary.mkdir(parents=True)
    try:
        _convert_gguf(packed, temporary)
        os.replace(temporary, folder)
    except OSError:
        if not folder.is_dir():
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _convert_gguf(packed: Path, folder: Path) -> None:
    """Expand the quantised weights to float32 and write a plain Hugging Face folder."""
    tokenizer = AutoTokenizer.from_pretrained(packed.parent, gguf_file=packed.name)
    quantised = AutoModelForCausalLM.from_pretrained(packed.parent, gguf_file=packed.name, dtype=torch.float32)
    plain_config = quantised.config.__class__.from_dict(
        {key: value for key, value in quantised.config.to_dict().items() if key != "quantization_config"}
    )
    plain = AutoModelForCausalLM.from_config(plain_config)
    plain.load_state_dict(quantised.state_dict())
    plain.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)


def load_lm(config: LlmConfig, cache: Path, device: str | None = None) -> CausalLm:
    """Load the LLM, on the GPU if there is one.

    Raises:
        ModelError: the folder is missing or has no weights.
    """
    source = prepare_lm(config, cache)
    dtype = torch.float32 if config.dtype == "float32" else torch.bfloat16
    model = AutoModelForCausalLM.from_pretrained(source, trust_remote_code=False, use_safetensors=True, dtype=dtype)
    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    return CausalLm(model.eval().to(device or ("cuda" if torch.cuda.is_available() else "cpu")), tokenizer)
