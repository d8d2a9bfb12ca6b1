"""Counts what an LLM had to compute, or will have to, and how many operations that takes at least."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from embedder.config.run import LlmConfig
from embedder.models.architecture import architecture
from embedder.models.loader import one_model_error, read_config
from embedder.models.locate import count_parameters, gguf_file, loaded_bytes, locate_model
from embedder.models.onednn import PackedLinear

NUMBER_BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class ModelSize:
    """The weights that are multiplied with each token."""

    layers: int
    """Weights of the linear layers, the output layer excepted."""
    head: int
    """Weights of the output layer."""
    attention: int
    """Query width of a token, summed over the layers."""


@dataclass
class ModelWork:
    """Counts the work of one model."""

    size: ModelSize
    tokens: int = 0
    """Tokens through the layers."""
    head_tokens: int = 0
    """Tokens through the output layer."""
    attended: int = 0
    """Pairs of a token and one it sees, itself included."""
    money: float = 0.0
    """What a server asks for it, by the prices of the run file."""

    def add(self, tokens: int, head_tokens: int, attended: int) -> None:
        """Count further work."""
        self.tokens += tokens
        self.head_tokens += head_tokens
        self.attended += attended

    @property
    def flops(self) -> float:
        """Operations of all this: products with weights, of queries with keys, and of their scores with values."""
        weights = self.size.layers * self.tokens + self.size.head * self.head_tokens
        # A product with a weight is a multiplication and an addition; a seen token costs one with its key and one with
        # its value.
        return 2.0 * weights + 4.0 * self.size.attention * self.attended


def model_size(model: PreTrainedModel) -> ModelSize:
    """The sizes of a transformer; a mixture of experts counts only those that a token goes through."""
    # Packed weights are of other shapes, and a divided model holds a part of each.
    if getattr(model, "hf_quantizer", None) is not None or getattr(model, "_tp_size", None) is not None:
        model = architecture(model.config)
    head = model.get_output_embeddings()
    config = model.config.get_text_config()
    chosen = getattr(config, "num_experts_per_tok", None)
    layers = sum(_weights(module, chosen) for module in model.modules() if module is not head)
    return ModelSize(layers, _weights(head, None), sum(_query_width(layer) for layer in config.per_layer_config))


def _query_width(layer: PreTrainedConfig) -> int:
    heads = getattr(layer, "num_attention_heads", None) or 0
    return int(heads * (getattr(layer, "head_dim", None) or layer.hidden_size // heads)) if heads else 0


def _weights(module: nn.Module | None, chosen: int | None) -> int:
    if module is None:
        return 0
    if isinstance(module, Conv1D):  # the linear layer of GPT-2, which is no nn.Linear
        return int(module.weight.numel())
    if isinstance(module, nn.Linear | PackedLinear):
        return module.in_features * module.out_features
    # Experts hold their weights as one parameter (experts, in, out), because transformers multiplies them in groups.
    stacked = [weight for weight in module.parameters(recurse=False) if weight.dim() == 3]
    return sum(weight[0].numel() * min(chosen or len(weight), len(weight)) for weight in stacked)


def multiplied_weights(folder: Path) -> int:
    """Weights that an LLM multiplies with each token, however they are stored; of a GGUF file by its bytes.

    Raises:
        ModelError: the configuration makes no model.
    """
    if gguf_file(folder) is not None:
        return count_parameters(folder)
    with one_model_error(folder):
        size = model_size(architecture(read_config(folder)))
    return size.layers + size.head


def memory_line(llm: LlmConfig, gpus: float) -> str:
    """The memory that the LLM's weights take, for the user of a dry run."""
    whole = loaded_bytes(locate_model(llm.model), NUMBER_BYTES[llm.dtype]) / 1e9
    shared = f" on {gpus:g} GPUs together, {whole / gpus:,.2g} GB on each" if gpus > 1 else ""
    return f"the LLM's weights take about {whole:,.2g} GB{shared}"
