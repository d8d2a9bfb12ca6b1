"""Linear layers of a CPU model with their weights packed once for oneDNN's matrix product.

PyTorch's float32 product on x86 is MKL's, which packs the weight anew at each call and leaves the widest vector
instructions of non-Intel processors unused. Inference only: the packed weights carry no gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

TYPICAL_ROWS = 1024
"""For which number of rows the layout is chosen; other numbers are right as well, and hardly slower."""


def has_onednn() -> bool:
    """Whether this build of PyTorch brings oneDNN."""
    return bool(torch.backends.mkldnn.is_available())


def pack_weight(weight: Tensor) -> Tensor:
    """A float32 weight (out, in) in oneDNN's own layout."""
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
        """The plain weight; made anew at each call unless it was kept, for the few models that multiply with it."""
        return self.packed.to_dense() if self.plain is None else self.plain

    def forward(self, rows: Tensor) -> Tensor:
        """As `nn.Linear`."""
        return packed_linear(rows, self.packed, self.bias)


def pack_linear_layers(model: nn.Module, keep: nn.Module | None = None) -> None:
    """Replace every float32 `nn.Linear` of a model on the CPU; that of `keep` keeps its plain weight beside."""
    for name, child in model.named_children():
        if type(child) is nn.Linear and child.weight.dtype == torch.float32:
            setattr(model, name, PackedLinear(child, keep_weight=child is keep))
        else:
            pack_linear_layers(child, keep)
