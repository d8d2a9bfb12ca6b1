"""What a training does on a GPU alone, as far as a CPU can tell: its masks, passes, compiled layers and refusals."""

from __future__ import annotations

import pytest
import torch

from embedder.errors import DeviceError
from embedder.models.encoder import load_encoder
from embedder.models.transfer import begin_reading, upload
from embedder.training import learners, token_batches
from embedder.training.learners import check_precision, compile_for_training
from embedder.training.loop import Trainer
from tests.unit.test_not_finite import make_training
from tests.unit.tiny_folders import bert_folder

pytestmark = pytest.mark.usefixtures("one_thread")


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
    (tmp_path / "plain").mkdir()
    expected = losses(Trainer(make_training(tmp_path / "plain", model)))
    monkeypatch.setattr(learners, "lacking_compiler", lambda: None)
    trainer = Trainer(make_training(tmp_path, model))
    with torch.compiler.set_stance("force_eager"):
        compile_for_training(trainer._learner.network)
        layers = trainer._learner.network.backbone.encoder.layer
        assert all(layer._compiled_call_impl is not None for layer in layers)
        assert losses(trainer) == pytest.approx(expected, abs=2e-5)


def test_compile_for_training_without_a_compiler_names_the_setting(model, tiny_encoder, monkeypatch):
    monkeypatch.setattr(learners, "lacking_compiler", lambda: "Triton")
    with pytest.raises(DeviceError, match=r"train\.compile_layers: there is no Triton on the machine of a worker"):
        compile_for_training(load_encoder(tiny_encoder, device="cpu"))


def test_check_precision_refuses_a_format_that_a_gpu_imitates(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    check_precision("float32")
    with pytest.raises(DeviceError, match=r"train\.precision is 'bfloat16', which Tesla T4 does not have"):
        check_precision("bfloat16")
