"""Counts what an LLM had to compute, and how many operations that takes at least."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from embedder.models.onednn import PackedLinear


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
