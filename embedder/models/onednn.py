"""Linear layers of a CPU model by oneDNN's matrix product: with weights packed once, or trained.

PyTorch's float32 product on x86 is MKL's, which packs the weight anew at each call and leaves the widest vector
instructions of non-Intel processors unused. Packed weights carry no gradient; `train_linear_layers` is for training.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TYPICAL_ROWS = 1024
"""Number of rows for which the layout is chosen; other numbers are right as well, and hardly slower."""


def has_onednn() -> bool:
    return bool(torch.backends.mkldnn.is_available())


def pack_weight(weight: Tensor) -> Tensor:
    """A float32 weight (out, in) in oneDNN's own layout."""
    # These operators have no public name: PyTorch's own compiler calls them for a frozen layer on a CPU.
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), TYPICAL_ROWS)
    return packed


def packed_linear(rows: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    """`rows @ weight.T + bias` with a packed weight."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(rows, packed, bias, "none", [], "")
    return product


class PackedLinear(nn.Module):
    """Takes the place of an `nn.Linear`; keeps the plain weight only where somebody else needs it too."""

    def __init__(self, linear: nn.Linear, keep_weight: bool) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.packed = pack_weight(linear.weight)
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach(), requires_grad=False)
        self.plain = nn.Parameter(linear.weight.detach(), requires_grad=False) if keep_weight else None

    @property
    def weight(self) -> Tensor:
        """The plain weight; unless it was kept it is made at each call, for the few models that multiply with it."""
        return self.packed.to_dense() if self.plain is None else self.plain

    def forward(self, rows: Tensor) -> Tensor:
        return packed_linear(rows, self.packed, self.bias)


def pack_linear_layers(model: nn.Module, keep: nn.Module | None = None) -> None:
    """Replace every float32 `nn.Linear` of a model on the CPU; that of `keep` keeps its plain weight beside."""
    for name, child in model.named_children():
        # Not `isinstance`: a subclass may compute something else.
        if type(child) is nn.Linear and child.weight.dtype == torch.float32:
            setattr(model, name, PackedLinear(child, keep_weight=child is keep))
        else:
            pack_linear_layers(child, keep)


class _Product(torch.autograd.Function):
    """`rows @ weight.T + bias` and its three gradients, each product by oneDNN; the weight as it lies."""

    @staticmethod
    def forward(ctx: Any, rows_TI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(rows_TI, weight_OI)
        ctx.has_bias = bias_O is not None
        return packed_linear(rows_TI, weight_OI, bias_O)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # noqa: ANN401
        rows_TI, weight_OI = ctx.saved_tensors
        (gradient_TO,) = gradients
        wants_rows, wants_weight, wants_bias = ctx.needs_input_grad
        # The weight is taken as it lies: it changes at every step, so that a packed copy would serve one product.
        rows = packed_linear(gradient_TO, weight_OI.T, None) if wants_rows else None
        weight = packed_linear(gradient_TO.T, rows_TI.T, None) if wants_weight else None
        bias = gradient_TO.sum(0) if ctx.has_bias and wants_bias else None
        return rows, weight, bias


class TrainedLinear(nn.Linear):
    """An `nn.Linear` whose products oneDNN computes where it is in float32 on a CPU."""

    def forward(self, rows: Tensor) -> Tensor:
        if rows.device.type != "cpu" or rows.dtype != torch.float32 or self.weight.dtype != torch.float32:
            return F.linear(rows, self.weight, self.bias)
        # oneDNN refuses the weight's gradient of a batch without rows, and knows nothing of autocast's bfloat16.
        if not rows.numel() or torch.is_autocast_enabled("cpu"):
            return F.linear(rows, self.weight, self.bias)
        product: Tensor = _Product.apply(rows.reshape(-1, self.in_features), self.weight, self.bias)
        return product.view(*rows.shape[:-1], self.out_features)


def train_linear_layers(model: nn.Module) -> None:
    """Let every `nn.Linear` of a model train by oneDNN; parameters, their names and the state stay as they are."""
    for module in model.modules():
        if type(module) is nn.Linear:
            # The class is changed in place, so that optimiser, checkpoints and export still find the same parameters.
            module.__class__ = TrainedLinear
