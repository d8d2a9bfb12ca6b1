"""Loads the LLM that gives the feedback; a GGUF file is converted once to safetensors and kept in the cache."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from gguf import GGUFReader
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from embedder.config.run import LlmConfig
from embedder.errors import ModelError
from embedder.hashing import file_sha256
from embedder.models.device import keep_freed_memory
from embedder.models.loader import LLM, check_loadable, load_network, load_tokenizer, one_model_error
from embedder.models.locate import gguf_file, locate_model
from embedder.models.onednn import has_onednn, pack_linear_layers
from embedder.models.plain_tokenizer import PlainTokenizers, plain_tokenizers
from embedder.storage.durable import appearing

ROUNDING = {torch.float32: 1e-4, torch.bfloat16: 0.05}
"""Greatest difference of logits that are taken for equal, as a share of their spread."""
PROBE_IDS = [[5, 6, 7, 8, 9], [5, 6, 7, 10, 11]]
"""Two rows that differ in their last words only."""


@dataclass(frozen=True)
class CausalLm:
    """A causal language model with its tokenizer, in evaluation mode."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    @property
    def device(self) -> torch.device:
        # With `device_map: auto` layers are on several devices; inputs belong where the embedding table is.
        return torch.device(next(self.model.parameters()).device)

    def tokens(self, text: str) -> list[int]:
        """Token ids without special tokens."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    @property
    def end_ids(self) -> frozenset[int]:
        """Tokens with which the model or the tokenizer ends a text."""
        ends = [self.tokenizer.eos_token_id, getattr(self.model.generation_config, "eos_token_id", None)]
        return frozenset(
            int(end) for each in ends if each is not None for end in (each if isinstance(each, list) else [each])
        )

    def stop_ids(self, stop: tuple[str, ...]) -> frozenset[int]:
        """Every token with one of the texts in it, such as ".\\n" for a line's end."""
        # By text and not by encoding the stop text, because a byte-pair vocabulary has many tokens that contain it.
        texts = self._token_texts if stop else []
        return frozenset(token for token, text in enumerate(texts) if any(mark in text for mark in stop))

    @cached_property
    def plain(self) -> PlainTokenizers:
        """The tokenizers for data, in which no text is a control token."""
        return plain_tokenizers(self.tokenizer)

    @cached_property
    def lead_ids(self) -> list[int]:
        """What the tokenizer puts before every text: the beginning-of-text token of most models, or nothing."""
        whole, plain = (list(self.tokenizer("a", add_special_tokens=flag)["input_ids"]) for flag in (True, False))
        starts = [i for i in range(len(whole)) if whole[i : i + len(plain)] == plain]
        return whole[: starts[0]] if starts else []

    @cached_property
    def _token_texts(self) -> list[str]:
        return list(self.tokenizer.batch_decode([[token] for token in range(len(self.tokenizer))]))


def prepare_lm(config: LlmConfig, cache: Path) -> Path:
    """The folder to load the LLM from; converts a GGUF file into `cache` unless that was done before.

    The converted folder appears by one rename, so that two processes may do this at once.
    """
    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()  # in a log each of its states is a line
    source = locate_model(config.model)
    packed = gguf_file(source)
    if packed is None:
        return source
    folder = cache / f"{packed.stem}-{file_sha256(packed)[:16]}"
    if folder.is_dir():
        return folder
    with one_model_error(source), appearing(folder) as unfinished:
        _convert_gguf(packed, unfinished)
    return folder


def _convert_gguf(packed: Path, folder: Path) -> None:
    """Expand the quantised weights to float32 and write a plain Hugging Face folder."""
    # Without the refusal transformers would ask on the terminal whether code of the folder may run.
    quantised = AutoModelForCausalLM.from_pretrained(
        packed.parent, gguf_file=packed.name, trust_remote_code=False, dtype=torch.float32
    )
    # A model loaded from GGUF keeps the mark of its quantisation, though its weights are expanded. They are moved into
    # one that was never quantised, so that the saved folder loads as any other.
    plain_config = quantised.config.__class__.from_dict(
        {key: value for key, value in quantised.config.to_dict().items() if key != "quantization_config"}
    )
    plain = AutoModelForCausalLM.from_config(plain_config, trust_remote_code=False)
    plain.load_state_dict(quantised.state_dict())
    plain.save_pretrained(folder, safe_serialization=True)
    load_tokenizer(packed.parent).save_pretrained(folder)


def check_llm(config: LlmConfig) -> None:
    """Refuse an LLM that could not be loaded, as far as that is known without reading weights.

    Raises:
        ModelError: the folder is missing or lacks something, or holds no causal language model.
    """
    folder = locate_model(config.model)
    packed = gguf_file(folder)
    if packed is None:
        check_loadable(LLM, folder)
        return
    # The library finds every tensor in the file; which model they make is known when it has been converted.
    with one_model_error(folder):
        GGUFReader(packed)


def load_lm(config: LlmConfig, cache: Path, device: torch.device | str) -> CausalLm:
    """Load the LLM on a device; on a CPU its linear layers are packed for oneDNN.

    Raises:
        ModelError: the folder is missing, lacks weights, or holds no causal language model.
    """
    folder = prepare_lm(config, cache)
    dtype = torch.float32 if config.dtype == "float32" else torch.bfloat16
    kind = torch.device(device).type
    spread = "auto" if config.device_map == "auto" and kind == "cuda" else str(device)
    described, tokenizer = check_loadable(LLM, folder)
    model = load_network(LLM, folder, described, dtype=dtype, device_map=spread)
    _refuse_damaged(model, folder)
    # Some encoders, BERT among them, have a causal class as well and load without complaint.
    if reads_ahead(model):
        raise ModelError(
            f"llm.model {config.model!r} sees the words it is to predict, so it is no causal language model"
        )
    if kind == "cpu":
        keep_freed_memory()
    if kind == "cpu" and has_onednn():
        # The output layer keeps its plain weight because it may be the embedding table too.
        pack_linear_layers(model, keep=model.get_output_embeddings())
    return CausalLm(model, tokenizer)


@torch.inference_mode()
def _refuse_damaged(model: PreTrainedModel, folder: Path) -> None:
    """Refuse a model whose predictions are no numbers: each comparison with such a one would pass.

    Raises:
        ModelError: they are not finite.
    """
    ids = torch.tensor([PROBE_IDS[0]], device=next(model.parameters()).device)
    with one_model_error(folder):
        logits = model(input_ids=ids).logits
    if not bool(torch.isfinite(logits).all()):
        raise ModelError(f"model folder {folder}: its predictions are not finite, so it is damaged; copy it again")


@torch.inference_mode()
def reads_ahead(model: PreTrainedModel) -> bool:
    """Tell whether what the model predicts depends on later words, as it does in an encoder such as BERT."""
    # A causal model predicts the same from the first three.
    device = next(model.parameters()).device
    ids = torch.tensor(PROBE_IDS, device=device)
    first, second = model(input_ids=ids).logits[:, :3].float()
    return bool((first - second).abs().mean() > ROUNDING[model.dtype] * first.std())
