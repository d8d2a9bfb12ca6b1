"""Loads the LLM that gives the feedback; a GGUF file is converted once to safetensors and kept in the cache."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from gguf import GGUFReader
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from embedder.config.run import LlmConfig
from embedder.errors import ModelError
from embedder.hashing import file_sha256
from embedder.models.architecture import check_division, division
from embedder.models.device import check_format, device_kind, keep_freed_memory, matmul_rate
from embedder.models.llm import LanguageModel
from embedder.models.loader import LLM, check_loadable, load_network, load_tokenizer, one_model_error
from embedder.models.locate import check_runnable, gguf_file, locate_model
from embedder.models.onednn import has_onednn, pack_linear_layers
from embedder.models.tensor_parallel import Followers, Rank, share_logits, share_memory_limit, use_own_parts
from embedder.storage.durable import appearing

ROUNDING = {torch.float32: 1e-4, torch.bfloat16: 0.05}
"""Greatest difference of logits that are taken for equal, as a share of their spread."""
PROBE_IDS = [[5, 6, 7, 8, 9], [5, 6, 7, 10, 11]]
"""Two rows that differ in their last words only."""


@dataclass(frozen=True)
class CausalLm(LanguageModel):
    """A causal language model with its tokenizer, in evaluation mode."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    followers: Followers | None = None
    """The processes that hold its other parts, where it is divided over several GPUs."""

    @property
    def gpus(self) -> int:
        """The devices that compute it."""
        return self.followers.rank.size if self.followers else 1

    @property
    def device_kind(self) -> str:
        """What its last digits depend on: the kind of device and number format, and over how many it is divided."""
        kind = device_kind(self.device, self.model.dtype)
        return kind if self.followers is None else f"{self.gpus} x {kind}"

    @property
    def device(self) -> torch.device:
        return torch.device(next(self.model.parameters()).device)

    @property
    def further_ends(self) -> object:
        return getattr(self.model.generation_config, "eos_token_id", None)

    @property
    def peak_flops(self) -> float:
        """Operations a second that its devices can do."""
        return self.gpus * matmul_rate(self.device, self.model.dtype)


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


def check_llm(config: LlmConfig, gpus: float = 0) -> None:
    """Refuse an LLM that could not be loaded to so many GPUs, as far as that is known without reading weights.

    Raises:
        ModelError: the folder is missing or lacks something, holds no causal language model, or one that these GPUs
            cannot run or share.
    """
    folder = locate_model(config.model)
    packed = gguf_file(folder)
    check_runnable(folder, gpus)
    if packed is None:
        check_loadable(LLM, folder)
        if gpus > 1:
            check_division(folder, int(gpus))
        return
    # The library finds every tensor in the file; which model they make is known when it has been converted.
    with one_model_error(folder):
        GGUFReader(packed)


def load_lm(config: LlmConfig, cache: Path, device: torch.device | str, gpus: float = 1) -> CausalLm:
    """Load the LLM on a device; on a CPU its linear layers are packed for oneDNN.

    With `device_map: auto` and several GPUs it is divided over them, each with a process that ends with this one.

    Raises:
        ModelError: the folder is missing, lacks weights, or holds no causal language model, or it cannot be divided.
        DeviceError: one of the GPUs that are to share it fails, or has no bfloat16, and that is asked for.
    """
    folder = prepare_lm(config, cache)
    load = partial(_load_part, config, folder, torch.device(device))
    if config.device_map == "single" or gpus <= 1:
        return load(None)
    check_division(folder, int(gpus))
    followers = Followers(int(gpus))
    return replace(followers.load(load), followers=followers)


def _load_part(config: LlmConfig, folder: Path, device: torch.device, rank: Rank | None) -> CausalLm:
    """Load the part of a rank on a device of that kind, or the whole LLM."""
    kind = device.type
    dtype = torch.float32 if config.dtype == "float32" else torch.bfloat16
    check_format(device, dtype, "llm.dtype")
    described, tokenizer = check_loadable(LLM, folder)
    if rank is None:
        model = load_network(LLM, folder, described, dtype=dtype, device_map=str(device))
    else:
        rank.join(kind)
        shares = division(described, rank.size)
        model = load_network(LLM, folder, described, dtype=dtype, distributed_config=shares)
        use_own_parts(model)
        share_logits(model.get_output_embeddings())
        share_memory_limit(rank.device(kind))
    _refuse_damaged(model, folder)
    # Some encoders, BERT among them, have a causal class as well and load without complaint.
    if reads_ahead(model):
        raise ModelError(
            f"llm.model {config.model!r} sees the words it is to predict, so it is no causal language model"
        )
    if kind == "cpu":
        keep_freed_memory()
    # A part of a layer is no `nn.Linear` by itself: its inputs and results are shared with other processes.
    if kind == "cpu" and rank is None and has_onednn():
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
    return bool((first - second).abs().mean() > ROUNDING.get(model.dtype, 0.05) * first.std())
