"""What a training does on a GPU alone, as far as a CPU can tell: its masks, passes, compiled layers and refusals."""

from __future__ import annotations

import pytest
import torch

from embedder.errors import DeviceError
from embedder.models.device import check_bfloat16
from embedder.models.encoder import load_encoder
from embedder.models.transfer import begin_reading, upload
from embedder.training import learners, token_batches
from embedder.training.learners import compile_for_training
from embedder.training.loop import Trainer
from ray_jobs.training.worker import worker_resources
from tests.unit.test_not_finite import make_training
from tests.unit.tiny_folders import bert_folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return bert_folder(tmp_path_factory.mktemp("model") / "bert", initializer_range=0.3)


def losses(trainer: Trainer) -> list[float]:
    return [trainer.step().loss for _ in range(4)]


def test_transfer_on_a_cpu_is_what_there_was():
    values = torch.tensor([1.5, -2.0])
    assert upload(values, torch.device("cpu")) is values
    assert begin_reading(values)() == [1.5, -2.0]


def test_training_with_a_mask_by_key_and_thrifty_passes_has_the_curve_of_a_cpu(tmp_path, model, monkeypatch):
    (tmp_path / "plain").mkdir()
    expected = losses(Trainer(make_training(tmp_path / "plain", model)))
    cuts = []

    def thrifty(lengths, most):
        found = token_batches.thrifty_batches(token_batches.np.array(lengths), most, 4)
        cuts.append(len(found))
        return found

    monkeypatch.setattr(token_batches, "length_batches", thrifty)
    trainer = Trainer(make_training(tmp_path, model))
    trainer._learner.network.masks_keys = True
    assert losses(trainer) == pytest.approx(expected, abs=2e-5)
    assert min(cuts) > 1


def test_training_compiles_each_layer_and_has_the_curve_of_plain_ones(tmp_path, model, monkeypatch):
    # What other tests here compiled would be compiled anew.
    torch.compiler.reset()
    (tmp_path / "plain").mkdir()
    expected = losses(Trainer(make_training(tmp_path / "plain", model)))
    monkeypatch.setattr(learners, "lacking_compiler", lambda: None)
    trainer = Trainer(make_training(tmp_path, model))
    network = trainer._learner.network
    network.masks_keys = True
    compile_for_training(network, compiler="aot_eager")
    assert not network.training and all(weight.grad is None for weight in network.parameters())
    assert all(layer._compiled_call_impl is not None for layer in network.backbone.encoder.layer)
    network.train()
    with torch.compiler.set_stance("fail_on_recompile"):
        assert losses(trainer) == pytest.approx(expected, abs=2e-5)


class Refused(torch.autograd.Function):
    """Cannot be gone back through."""

    @staticmethod
    def forward(ctx, values):
        return values.clone()

    @staticmethod
    def backward(ctx, slope):
        raise torch._dynamo.exc.InternalTorchDynamoError("no kernel for the way back")


def test_compile_for_training_tries_the_way_back_too(tiny_encoder, monkeypatch, caplog):
    monkeypatch.setattr(learners, "lacking_compiler", lambda: None)
    encoder = load_encoder(tiny_encoder, device="cpu")
    embed = encoder.embed
    monkeypatch.setattr(encoder, "embed", lambda batch: Refused.apply(embed(batch)))
    compile_for_training(encoder, compiler="aot_eager")
    assert "BertModel runs uncompiled, which is slower: no kernel for the way back" in caplog.text
    assert all(layer._compiled_call_impl is None for layer in encoder.backbone.encoder.layer)


def test_compile_for_training_without_a_compiler_names_the_setting(model, tiny_encoder, monkeypatch):
    monkeypatch.setattr(learners, "lacking_compiler", lambda: "Triton")
    with pytest.raises(DeviceError, match=r"train\.compile_layers: there is no Triton on the machine of a worker"):
        compile_for_training(load_encoder(tiny_encoder, device="cpu"))


def test_worker_without_gpus_sees_none_whatever_ray_knows_of_the_machine():
    assert worker_resources(0) == ({"CPU": 1}, {"env_vars": {"CUDA_VISIBLE_DEVICES": ""}})


def test_check_bfloat16_refuses_a_gpu_that_imitates_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    with pytest.raises(DeviceError, match=r"train\.precision is bfloat16, which Tesla T4 does not have; take float32"):
        check_bfloat16("train.precision")
