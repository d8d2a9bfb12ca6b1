"""What an LLM had to compute, and how many operations that takes at least."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from embedder.models.onednn import PackedLinear


@dataclass
class ModelWork:
    """Counts of one use of a model."""

    tokens: int = 0
    """Tokens through the layers."""
    places: int = 0
    """Tokens through the output layer."""
    attended: int = 0
    """Pairs of a token and one it sees, itself included."""

    def add(self, tokens: int, places: int, attended: int) -> None:
        """Count further work."""
        self.tokens += tokens
        self.places += places
        self.attended += attended


@dataclass(frozen=True)
class ModelSize:
    """The weights that are multiplied with each token."""

    layers: int
    """Weights of the linear layers, the output layer excepted."""
    head: int
    """Weights of the output layer."""
    attention: int
    """Query width of a token, summed over the layers."""

    def flops(self, work: ModelWork) -> float:
        """Operations of some work: products with weights, and of queries with keys and of their weights with values."""
        return 2.0 * (self.layers * work.tokens + self.head * work.places) + 4.0 * self.attention * work.attended


def model_size(model: PreTrainedModel) -> ModelSize:
    """The sizes of a transformer; of a mixture of experts those that a token goes through."""
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
    if isinstance(module, Conv1D):
        return int(module.weight.numel())
    if isinstance(module, nn.Linear | PackedLinear):
        return module.in_features * module.out_features
    stacked = [weight for weight in module.parameters(recurse=False) if weight.dim() == 3]
    return sum(weight[0].numel() * min(chosen or len(weight), len(weight)) for weight in stacked)
