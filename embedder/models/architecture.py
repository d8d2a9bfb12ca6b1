"""The architecture of an LLM, from its configuration alone: no weight is read.

It tells what the LLM multiplies however its weights are stored, and whether several GPUs can share it.
"""

from __future__ import annotations

import copy
from math import gcd
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.distributed.configuration_utils import DistributedConfig

from embedder.errors import ModelError
from embedder.models.loader import one_model_error, read_config
from embedder.models.locate import folder_quantisation


def architecture(config: PreTrainedConfig) -> PreTrainedModel:
    """The causal language model of a configuration in full precision; its weights have shapes, and no memory."""
    plain = copy.deepcopy(config)
    # Packed layers have other shapes, and some can be made on a GPU alone.
    if hasattr(plain, "quantization_config"):
        del plain.quantization_config
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(plain, trust_remote_code=False)
    return model


def check_division(folder: Path, gpus: int) -> None:
    """Refuse to divide an LLM over so many GPUs where that cannot be done.

    Raises:
        ModelError: its weights are packed, transformers has no plan for it, or its heads cannot be shared evenly.
    """
    method, config = folder_quantisation(folder), read_config(folder)
    if method is not None:
        raise ModelError(
            f"model folder {folder}: its weights are quantised by {method}, and such an LLM is for one GPU; set "
            "gpus_per_actor to 1, or take the model in full precision"
        )
    with one_model_error(folder):
        model = architecture(config)
    if not model.tp_plan.keys() - _ends(model):
        raise ModelError(
            f"model folder {folder}: transformers has no plan (tp_plan) to divide a {config.model_type} over "
            f"{gpus} GPUs; set gpus_per_actor to 1, or take an LLM such as a Llama, Qwen or Mistral"
        )
    shares = gcd(*_heads(config))
    if shares % gpus:
        raise ModelError(
            f"model folder {folder}: {gpus} GPUs cannot share its attention heads evenly; set gpus_per_actor to a "
            f"divisor of {shares}"
        )


def _heads(config: PreTrainedConfig) -> list[int]:
    """The numbers of query and key heads of all layers."""
    names = ("num_attention_heads", "num_key_value_heads")
    layers = config.get_text_config().per_layer_config
    return [heads for layer in layers for name in names if (heads := getattr(layer, name, None))]


def division(config: PreTrainedConfig, gpus: int) -> DistributedConfig:
    """How transformers is to divide an LLM: by its own plan, but with embedding table and output layer whole.

    The output layer is read in slices for log-likelihoods, and a part of it would need another way to do that.
    """
    model = architecture(config)
    # An empty dictionary would stand for a plan that divides nothing.
    whole = dict.fromkeys(model.tp_plan.keys() & _ends(model), "replicate")
    return DistributedConfig(tp_size=gpus, tp_plan=whole or "auto")


def _ends(model: PreTrainedModel) -> set[str]:
    """The names of embedding table and output layer."""
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    return {name for name, module in model.named_modules() if any(module is end for end in ends)}
