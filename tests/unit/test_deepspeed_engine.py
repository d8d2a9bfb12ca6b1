"""Training through DeepSpeed: one curve, whatever is sharded, chunked or kept, and by however many workers."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertModel

from embedder.config.run import EncoderConfig
from embedder.config.tasks import BUILTIN_TASKS
from embedder.errors import ConfigError
from embedder.models.encoder import encode, load_encoder
from embedder.training.checkpoint import last_step
from tests.conftest import LOUD
from tests.unit.training_ranks import Run, follow, losses, metrics, on_workers

pytestmark = pytest.mark.slow
TWO = {"num_workers": 2}
SHARDED = {f"stage {stage}": {"zero_stage": stage} for stage in (1, 2, 3)}
# Stages 1 and 2 have one optimizer in DeepSpeed; with other settings stage 2 or 3 stands for what is sharded.
OFFLOADED = {f"stage {stage}, offload": {"zero_stage": stage, "offload_optimizer": True} for stage in (2, 3)}
CHUNKED = {f"stage {stage}, chunks": {"zero_stage": stage, "chunk_tokens": 64} for stage in (0, 3)}
CHECKPOINTED = {f"stage {stage}, recomputed": {"zero_stage": stage, "gradient_checkpointing": True} for stage in (0, 3)}
SAME = SHARDED | OFFLOADED | CHUNKED | CHECKPOINTED
ROUGH = {f"stage {stage}, bfloat16": {"zero_stage": stage, "precision": "bfloat16"} for stage in (0, 3)}
LORA = {"lora": {"rank": 4, "target_modules": ["query", "dense"]}}
ADAPTED = {f"stage {stage}, lora": {"zero_stage": stage, **LORA} for stage in (0, 3)}
DROPPED = {f"stage {stage}, dropout": {"zero_stage": stage, "dropout": 0.2} for stage in (0, 3)}
DROPPED["dropout, chunks"] = {"dropout": 0.2, "chunk_tokens": 256}
"""Chunks of the size of the batches, so that the same texts are dropped from together."""
MIXED = {"batches": "mixed", "matryoshka_dimensions": [8]}
"""Queries of all tasks in a batch, and a prefix of the vectors trained with them."""
GUARD = {"validation": {"queries": 1, "every": 3}, "guard": {}, "learning_rate": 3e-4}
GUARDED = {f"stage {stage}, guarded": {"zero_stage": stage, **GUARD, **TWO} for stage in (0, 3)}
GUARDED["lora, guarded"] = {**GUARD, **LORA, **TWO, "zero_stage": 3, "learning_rate": 3e-3}
STOPPED = {f"stopped at stage {stage}": {"zero_stage": stage, **TWO} for stage in (0, 2, 3)}


@pytest.fixture(scope="module")
def loud_encoder(tmp_path_factory, tiny_encoder_folder):
    """The tiny encoder with weights so large that no layer is all but the identity."""
    folder = tmp_path_factory.mktemp("loud") / "encoder"
    shutil.copytree(tiny_encoder_folder, folder)
    torch.manual_seed(0)
    shape = BertConfig.from_pretrained(folder)
    shape.initializer_range = LOUD
    BertModel(shape).save_pretrained(folder)
    return EncoderConfig(model=str(folder), pooling="mean", max_tokens=64, batch_tokens=128)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, loud_encoder):
    """The folder in which every run of this file was made: by this process, by two others, and by this one again."""
    folder = tmp_path_factory.mktemp("trainings")
    first = [Run("alone"), Run("lora alone", LORA), Run("alone, stopped", stop=3)]
    first += [Run("guarded alone", GUARD), Run("lora guarded alone", {**GUARDED["lora, guarded"], "num_workers": 1})]
    first += [Run("long", {"steps": 24}), Run("lora long", {**LORA, "steps": 24, "learning_rate": 1e-2})]
    follow([*first, Run("mixed alone", MIXED), Run("mixed, stopped", MIXED, stop=3)], folder, loud_encoder)
    settings = {"plain": {}} | SAME | ROUGH | ADAPTED | DROPPED | GUARDED
    runs = [Run(name, {**chosen, **TWO}) for name, chosen in settings.items()]
    runs += [Run(name, chosen, stop=3) for name, chosen in STOPPED.items()]
    runs += [Run(f"{name}, on at stage 2", {**TWO, "zero_stage": 2}, like=name) for name in STOPPED]
    runs += [Run("alone, then two", {**TWO, "zero_stage": 3}, like="alone, stopped")]
    runs += [Run("mixed", {**MIXED, **TWO}), Run("mixed, then two", {**MIXED, **TWO}, like="mixed, stopped")]
    on_workers(2, runs, folder, loud_encoder)
    resumed = [Run(f"{name}, on alone", {"zero_stage": stage}, like=name) for stage, name in enumerate(STOPPED)]
    follow(resumed, folder, loud_encoder)
    return folder


def weights(folder, run):
    return load_file(folder / run / "model" / "model.safetensors")


def vectors(config, model):
    encoder = load_encoder(config.model_copy(update={"model": str(model)}), "cpu")
    return encode(encoder, ["where is the fox?", "the dog is near 3", "a bridge"], BUILTIN_TASKS["qa"], "query")


def distance(folder, config, run, other):
    """The greatest difference in vectors of two exported encoders (Adam blows up that of weights without a say)."""
    found, expected = (vectors(config, folder / name / "model") for name in (run, other))
    return np.abs(found - expected).max()


@pytest.mark.parametrize("name", ["long", "lora long"])
def test_training_lowers_the_loss_of_a_task(trained, name):
    """Over the first and the last third of its steps, since each step has other queries."""
    steps = metrics(trained, name)
    assert len(steps) == 24
    for task in ("chat", "tool"):
        curve = [step.losses[task] for step in steps if task in step.losses]
        third = len(curve) // 3
        assert sum(curve[-third:]) < 0.98 * sum(curve[:third])


@pytest.mark.parametrize("name", SAME)
def test_training_has_one_curve_and_vectors_in_every_setting(trained, loud_encoder, name):
    assert losses(trained, name) == pytest.approx(losses(trained, "plain"), abs=2e-5)
    assert distance(trained, loud_encoder, name, "plain") < 1e-4


def test_training_by_one_worker_has_the_curve_of_two(trained):
    assert losses(trained, "alone") == pytest.approx(losses(trained, "plain"), abs=2e-5)
    assert losses(trained, "lora alone") == pytest.approx(losses(trained, "stage 0, lora"), abs=2e-5)


def test_training_computes_one_reward_temperature_whatever_the_workers_and_where_it_was_resumed(trained):
    names = ["alone", "plain", "alone, then two", "stopped at stage 3, on alone", "mixed, then two"]
    outcomes = [json.loads((trained / name / "outcome.json").read_text()) for name in names]
    first = outcomes[0]["reward_temperatures"]
    assert all(outcome["reward_temperatures"] == first for outcome in outcomes)
    # Half of the groups hold 0, 1 and 2; of the others those with 1 twice are less spread, and the rest more.
    assert first["qa"] == first["chat"] == pytest.approx((2 / 3) ** 0.5) and first["tool"] is None


def test_training_on_mixed_batches_with_a_prefix_is_alike_on_any_number_of_workers(trained, loud_encoder):
    for name in ("mixed", "mixed, then two"):
        assert losses(trained, name) == pytest.approx(losses(trained, "mixed alone"), abs=2e-5)
        assert distance(trained, loud_encoder, name, "mixed alone") < 1e-4
    steps = metrics(trained, "mixed")
    assert all(step.losses.keys() == step.paces.keys() for step in steps)
    assert max(len(step.losses) for step in steps) == 3
    assert losses(trained, "mixed") != pytest.approx(losses(trained, "plain"), abs=1e-2)


def test_training_of_a_prefix_longer_than_the_vectors_ends_before_its_first_step(tmp_path, loud_encoder):
    with pytest.raises(ConfigError, match=r"matryoshka_dimensions is \[64\], but the encoder's vectors have 32"):
        follow([Run("long", {"matryoshka_dimensions": [64]})], tmp_path, loud_encoder)
    assert metrics(tmp_path, "long") == []


@pytest.mark.parametrize("name", ROUGH)
def test_training_in_bfloat16_has_the_curve_within_its_rounding(trained, name):
    found, plain = losses(trained, name), losses(trained, "plain")
    assert found == pytest.approx(plain, rel=0.05)
    assert np.abs(np.subtract(found, plain)).max() > 1e-4
    assert all(value.dtype == torch.float32 for value in weights(trained, name).values())


def test_training_of_adapters_is_alike_sharded_and_not(trained, loud_encoder):
    assert losses(trained, "stage 3, lora") == pytest.approx(losses(trained, "stage 0, lora"), abs=2e-5)
    assert distance(trained, loud_encoder, "stage 3, lora", "stage 0, lora") < 1e-4


def test_adapters_change_what_they_were_asked_to_and_are_merged_at_export(trained, loud_encoder):
    before = load_file(f"{loud_encoder.model}/model.safetensors")
    after = weights(trained, "stage 0, lora")
    assert before.keys() == after.keys()
    changed = {name for name in before if (before[name] - after[name]).abs().max() > 1e-6}
    wanted = {name for name in before if name.endswith(("query.weight", "dense.weight")) and "pooler" not in name}
    assert changed == wanted
    state = load_file(max((trained / "stage 0, lora" / "checkpoints").glob("step-*")) / "weights.safetensors")
    assert state.keys() and all("lora_" in name for name in state)


@pytest.mark.parametrize("name", ["stage 3, dropout", "dropout, chunks"])
def test_training_drops_the_same_in_every_setting(trained, name):
    assert losses(trained, name) == pytest.approx(losses(trained, "stage 0, dropout"), abs=2e-5)
    assert losses(trained, name) != pytest.approx(losses(trained, "plain"), abs=1e-3)


@pytest.mark.parametrize("name", STOPPED)
def test_training_that_stopped_goes_on_as_if_it_had_not(trained, loud_encoder, name):
    assert len(losses(trained, name)) == 4 and not (trained / name / "model").exists()
    again = f"{name}, on at stage 2"
    exact = "stage 2" if name.endswith("2") else None
    assert losses(trained, again) == pytest.approx(losses(trained, "plain"), abs=2e-5)
    if exact:
        assert losses(trained, again) == losses(trained, exact)
        assert distance(trained, loud_encoder, again, exact) == 0


@pytest.mark.parametrize("name", STOPPED)
def test_training_goes_on_with_one_worker_where_two_stopped(trained, loud_encoder, name):
    assert losses(trained, f"{name}, on alone") == pytest.approx(losses(trained, "plain"), abs=2e-5)
    assert distance(trained, loud_encoder, f"{name}, on alone", "plain") < 1e-4


def test_training_goes_on_with_two_workers_where_one_stopped(trained):
    assert losses(trained, "alone, then two") == pytest.approx(losses(trained, "alone"), abs=2e-5)


def test_training_exports_the_encoder_that_was_trained(trained, loud_encoder):
    before = vectors(loud_encoder, loud_encoder.model)
    assert np.abs(before - vectors(loud_encoder, trained / "plain" / "model")).max() > 1e-2
    assert last_step(trained / "plain" / "checkpoints") == 6
    outcome = json.loads((trained / "plain" / "outcome.json").read_text())
    alphas = outcome.pop("reward_temperatures")
    assert outcome == {"steps": 6, "validation": None, "guard": None} and alphas.keys() == {"qa", "chat", "tool"}


@pytest.mark.parametrize("name", GUARDED)
def test_guard_measures_and_chooses_alike_on_any_number_of_workers(trained, loud_encoder, name):
    alone = "lora guarded alone" if name.startswith("lora") else "guarded alone"
    found, expected = (json.loads((trained / run / "outcome.json").read_text())["guard"] for run in (name, alone))
    assert found["share"] == expected["share"]
    for one, other in zip(found["measured"], expected["measured"], strict=True):
        assert one["share"] == other["share"] and one["tasks"] == pytest.approx(other["tasks"])
    assert len({one["mean"] for one in expected["measured"]}) > 2
    assert distance(trained, loud_encoder, name, alone) < 1e-4
