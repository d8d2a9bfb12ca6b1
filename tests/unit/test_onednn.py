"""Packed linear layers against the layers they replace."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from embedder.config.run import LlmConfig
from embedder.models.causal_lm import load_lm
from embedder.models.onednn import PackedLinear, TrainedLinear, has_onednn, pack_linear_layers, train_linear_layers
from tests.unit.tiny_llms import SEQUENTIAL, SHARING, save_tiny

pytestmark = pytest.mark.skipif(not has_onednn(), reason="this PyTorch has no oneDNN")


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(53,), (1, 53), (2, 3, 53), (1, 0, 53), (5000, 53), (2, 2, 2, 53)])
@torch.inference_mode()
def test_packed_linear_is_the_layer(shape, bias):
    torch.manual_seed(0)
    linear = nn.Linear(53, 37, bias=bias)
    rows = torch.randn(shape)
    assert torch.allclose(PackedLinear(linear, keep_weight=False)(rows), linear(rows), atol=1e-5)


@torch.inference_mode()
def test_packed_linear_takes_rows_that_do_not_lie_side_by_side():
    linear, rows = nn.Linear(8, 5), torch.randn(8, 6)
    assert torch.allclose(PackedLinear(linear, keep_weight=False)(rows.T), linear(rows.T), atol=1e-6)


@pytest.mark.parametrize("keep", [False, True])
def test_packed_linear_still_shows_its_plain_weight(keep):
    linear = nn.Linear(53, 37)
    packed = PackedLinear(linear, keep_weight=keep)
    assert torch.equal(packed.weight, linear.weight)
    assert (packed.in_features, packed.out_features) == (53, 37)
    assert (packed.weight.data_ptr() == linear.weight.data_ptr()) == keep


class OwnLinear(nn.Linear):
    """A layer that may do something else."""


def test_pack_linear_layers_replaces_only_plain_layers_in_full_precision():
    inner = nn.ModuleList([nn.Linear(4, 4), OwnLinear(4, 4), nn.Linear(4, 4).bfloat16(), nn.Embedding(4, 4)])
    model = nn.Sequential(nn.Linear(4, 4), nn.ModuleDict({"inner": inner}))
    pack_linear_layers(model, keep=model[0])
    assert isinstance(model[0], PackedLinear)
    assert model[0].plain is not None
    assert [type(module) for module in model[1]["inner"]] == [PackedLinear, OwnLinear, nn.Linear, nn.Embedding]
    assert model[1]["inner"][0].plain is None


@pytest.mark.parametrize("name", ["tied llama", "mixtral", "opt", "mamba, no attention", "bloom, its own attention"])
@torch.inference_mode()
def test_pack_linear_layers_leaves_predictions_as_before(tmp_path, name):
    folder = save_tiny((SHARING | SEQUENTIAL)[name], tmp_path)
    config = LlmConfig(model=str(folder), dtype="float32")
    packed = load_lm(config, tmp_path / "cache", device="cpu").model
    assert any(isinstance(module, PackedLinear) for module in packed.modules())
    torch.manual_seed(3)
    plain = type(packed)(copy.deepcopy(packed.config)).eval()
    plain.load_state_dict(type(packed).from_pretrained(folder).state_dict())
    ids = torch.tensor([[5, 6, 7, 8]])
    assert torch.allclose(packed(input_ids=ids).logits, plain(input_ids=ids).logits, atol=1e-4)


def test_pack_linear_layers_leaves_a_model_in_half_precision_as_it_is(tiny_llm, tmp_path):
    model = load_lm(tiny_llm.model_copy(update={"dtype": "bfloat16"}), tmp_path, device="cpu").model
    assert not any(isinstance(module, PackedLinear) for module in model.modules())


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(53,), (1, 53), (2, 3, 53), (1, 0, 53), (700, 53)])
def test_trained_linear_gives_the_values_and_gradients_of_the_layer(shape, bias):
    torch.manual_seed(0)
    linear = nn.Linear(53, 37, bias=bias)
    trained = copy.deepcopy(linear)
    train_linear_layers(nn.Sequential(trained))
    assert type(trained) is TrainedLinear
    rows, upstream = torch.randn(shape), torch.randn(*shape[:-1], 37)
    results = []
    for layer in (linear, trained):
        given = rows.clone().requires_grad_()
        layer(given).backward(upstream)
        results.append([layer(rows), given.grad, *(one.grad for one in layer.parameters())])
    for expected, found in zip(*results, strict=True):
        assert torch.allclose(found, expected, rtol=1e-5, atol=1e-4)


def test_trained_linear_gives_a_frozen_weight_or_input_no_gradient():
    trained = nn.Linear(6, 4)
    train_linear_layers(nn.Sequential(trained))
    trained.weight.requires_grad_(False)
    rows = torch.randn(5, 6, requires_grad=True)
    trained(rows).sum().backward()
    assert trained.weight.grad is None and rows.grad is not None and trained.bias.grad is not None


def test_trained_linear_lets_gradients_through_rows_that_do_not_lie_side_by_side():
    linear = nn.Linear(8, 5)
    trained = copy.deepcopy(linear)
    train_linear_layers(nn.Sequential(trained))
    rows = torch.randn(8, 6)
    for layer in (linear, trained):
        (layer(rows.T).T.contiguous().T ** 2).sum().backward()
    assert torch.allclose(trained.weight.grad, linear.weight.grad, atol=1e-4)


def test_trained_linear_leaves_other_precisions_to_pytorch():
    model = nn.Sequential(nn.Linear(6, 4).bfloat16())
    train_linear_layers(model)
    assert model(torch.randn(3, 6, dtype=torch.bfloat16)).dtype == torch.bfloat16
